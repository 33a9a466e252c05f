"""What `mask_aware.py` measures, and its page."""
