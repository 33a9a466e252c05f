"""The training loop, its recipe, state and log."""
