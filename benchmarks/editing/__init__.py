"""An ensemble that is edited while callers ask it: what they get, how long they wait, and what the edits take."""
