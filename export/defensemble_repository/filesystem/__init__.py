"""Files of a repository: how they are read."""
