"""What a Python function may import from its platform. Nothing here is needed for a plain handler.

::

    from containerpub import function, Response, FunctionError

    @function
    def hello(event, context):
        if not event["body"]:
            raise FunctionError("a name is needed")
        context.logger.info("greeting %s", event["body"])
        return Response(201, {"Content-Type": "text/plain"}, "hello " + event["body"])
"""

from containerpub.context import Context
from containerpub.errors import FunctionError
from containerpub.marking import function
from containerpub.response import Response

__all__ = ["Context", "FunctionError", "Response", "function"]
