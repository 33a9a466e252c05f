"""The guard process that supervises Triton, and the state of running servers."""
