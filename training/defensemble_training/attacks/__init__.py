"""Gradient attacks on networks, and transfer of adversarial examples."""
