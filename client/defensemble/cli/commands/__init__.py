"""One module per command, importing only click."""
