"""The platform on one machine: PostgreSQL, NATS, an S3 endpoint and the services, as one supervised tree."""
