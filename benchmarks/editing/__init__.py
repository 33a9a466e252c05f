"""Parts of the benchmark of edits under load."""
