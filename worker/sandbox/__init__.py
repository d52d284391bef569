"""Sandboxes of one worker: starts them, hands them to calls, keeps them idle, destroys them."""
