"""What two benchmarks or more share."""
