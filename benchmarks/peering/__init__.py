"""Parts of the benchmark of other servers."""
