"""Parts of the trace of a call."""
