"""The application of each peer. Each runs in the environment of its server."""
