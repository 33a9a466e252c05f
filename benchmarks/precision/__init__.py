"""Parts of the benchmark of precisions."""
