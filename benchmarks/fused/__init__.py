"""What one fused graph costs beside the pipeline of the same members, served and in process."""
