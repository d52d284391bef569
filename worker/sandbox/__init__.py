"""Sandboxes of one worker between calls: who gets which, what is started, what goes."""
