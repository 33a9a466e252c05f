"""The client and its predictions."""
