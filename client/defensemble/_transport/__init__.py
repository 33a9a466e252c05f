"""Transports: how requests reach a server, over gRPC, HTTP, or a fake for tests."""
