"""What an ensemble behind Triton costs beside the same networks in the caller's own process."""
