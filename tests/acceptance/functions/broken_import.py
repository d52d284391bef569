import no_such_library


def handler(event, context):
    return no_such_library
