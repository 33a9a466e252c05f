"""The guard process that watches and restarts Triton, and the state of running servers."""
