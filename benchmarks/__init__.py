"""Benchmarks: each script compares alternatives in one run."""
