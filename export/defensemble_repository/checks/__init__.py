"""What can be wrong in a model repository, found without opening a graph."""
