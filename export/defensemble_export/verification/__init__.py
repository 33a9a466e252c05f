"""Compare exported graphs with their sources."""
