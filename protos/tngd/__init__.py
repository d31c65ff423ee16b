"""Generated gRPC interfaces of the project."""
