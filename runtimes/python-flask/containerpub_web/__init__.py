"""Turns an event into a request to a WSGI or ASGI application in this process, and its answer into a result."""
