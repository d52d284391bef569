"""Handlers of many signatures."""

import functools


def one(event):
    return ["one", event["body"]]


def two(event, context):
    return ["two", event["body"], context.attempt]


def optional(event, context=None):
    return ["optional", event["body"], context.attempt]


def keyword(event, *, verbose=False):
    return ["keyword", event["body"]]


def any_number(*arguments):
    return ["any", arguments[0]["body"], len(arguments)]


async def one_async(event):
    return ["async", event["body"]]


class Handlers:
    def one(self, event):
        return ["method", event["body"]]

    def two(self, event, context):
        return ["method of two", event["body"], context.attempt]

    def __call__(self, event):
        return ["object", event["body"]]

    @staticmethod
    def of_class(event):
        return ["static", event["body"]]


handlers = Handlers()


def wrapped(handler):
    @functools.wraps(handler)
    def wrapper(*args, **kwargs):
        return ["wrapped", *handler(*args, **kwargs)]

    return wrapper


wrapped_one = wrapped(one)
wrapped_two = wrapped(two)
partial = functools.partial(two, context=type("Context", (), {"attempt": 7}))
anonymous = lambda event: ["lambda", event["body"]]  # noqa: E731
