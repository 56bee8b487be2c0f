"""The HTTP gateway: what a request costs besides what it asks for."""
