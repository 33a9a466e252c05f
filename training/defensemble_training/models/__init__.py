"""Networks and their masks."""
