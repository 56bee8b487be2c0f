"""Random requests for every operation of the HTTP interface and for every rpc."""
