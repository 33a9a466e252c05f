"""Files of a model repository, as paths and bytes."""
