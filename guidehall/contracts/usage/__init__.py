"""Generated from protos/ by `./run protos`. Never edited by hand."""
