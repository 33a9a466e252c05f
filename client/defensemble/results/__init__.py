"""Result files: rates with intervals, and what they were measured with."""
