"""Checks of a machine and of its servers."""
