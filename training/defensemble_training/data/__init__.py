"""Datasets: where they are found, how they are decoded, and the cache of decoded images."""
