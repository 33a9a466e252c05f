"""Folders of a model repository: what they hold, as paths and bytes."""
