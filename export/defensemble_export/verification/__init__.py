"""Comparison of an exported graph with what it was made from."""
