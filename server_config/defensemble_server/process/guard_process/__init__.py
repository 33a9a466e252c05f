"""The guard process; it runs without site-packages, so that its modules import only the standard library and each other."""
