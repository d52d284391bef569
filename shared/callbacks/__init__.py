"""Callbacks of finished jobs: which URLs they may go to, and how they are signed."""
