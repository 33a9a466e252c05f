"""Edits of ensembles: what they ask for, what they write, their history and their journal."""
