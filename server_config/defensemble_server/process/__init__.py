"""The guard process, and what is known of running servers."""
