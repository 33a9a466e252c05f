"""Parts of the benchmark of the client."""
