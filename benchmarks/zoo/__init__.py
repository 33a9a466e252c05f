"""Parts of the benchmark and of the training of the zoo."""
