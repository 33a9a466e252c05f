"""Calls that are given up in every way, beside patient callers that must not notice."""
