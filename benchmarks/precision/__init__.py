"""What `precisions.py` measures, and how it tells it."""
