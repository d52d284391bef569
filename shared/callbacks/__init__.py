"""Callbacks of finished jobs: which URLs may be one, and how what is sent is signed."""
