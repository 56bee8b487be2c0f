"""What the platform is for: pure numerical packages, one folder per science.

Read `pipeline.py` first. Nothing in here knows of gRPC, NATS, S3, SQL or HTTP.
"""
