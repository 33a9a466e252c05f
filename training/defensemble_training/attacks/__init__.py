"""Gradient attacks on a network, and transfer of their images to others."""
