"""Users and API keys, in a schema of their own so that they can move to a service of their own."""
