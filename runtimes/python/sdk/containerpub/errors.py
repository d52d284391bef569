"""The failure that a function expects."""


class FunctionError(Exception):
    """Raise it to fail a call on purpose: the caller gets its message, without a traceback."""
