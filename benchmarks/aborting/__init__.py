"""Parts of the benchmark of aborted calls."""
