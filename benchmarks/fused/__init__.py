"""Parts of the benchmark of fused graphs."""
