"""What every service is built on: settings, errors, authentication, telemetry, the gRPC server, the event
bus."""
