"""Scripts that measure, each with its peers in the same run."""
