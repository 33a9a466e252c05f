"""Datasets: find, download and decode images, and cache them decoded."""
