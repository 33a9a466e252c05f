"""Check a machine and its servers."""
