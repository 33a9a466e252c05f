"""What each command does once its options are read; click only prints, asks, and reports options that do not go together."""
