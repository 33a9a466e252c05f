"""One module per command, with click alone."""
