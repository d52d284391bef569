"""The failure that a function expects."""


class FunctionError(Exception):
    """Raise it to fail a call on purpose: the caller gets its message, without a traceback.

    What it says of another attempt goes before what the function's settings say, within their ``max_attempts``; it is
    for accepted jobs, not for calls that are waited for.

    :param retry: False if trying again would be of no use.
    :param retry_after_s: seconds until the next attempt, a day at most; what is no such number is told of in the log
        and counts as None.
    """

    # For subclasses whose own __init__ does not call this one's.
    retry = True
    retry_after_s: "float | None" = None

    def __init__(self, *args: object, retry: bool = True, retry_after_s: "float | None" = None) -> None:
        super().__init__(*args)
        self.retry = retry
        self.retry_after_s = retry_after_s
