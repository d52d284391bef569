# Has the name of a module that a generic sandbox has imported before it meets this one.


def handler(event, context):
    return ["the function's own", __file__.replace(__file__.rpartition("/function/")[0], "")]
