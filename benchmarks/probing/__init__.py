"""Parts of the benchmark of the probes."""
