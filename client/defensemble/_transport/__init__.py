"""How requests reach a server: gRPC, HTTP, or a fake for tests."""
