from containerpub import function


def helper(event, context):
    return "the wrong one"


@function
async def chosen(event, context):
    return ["marked", event["body"]]
