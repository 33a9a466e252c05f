"""Check a model repository without opening its graphs."""
