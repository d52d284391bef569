from probe import answer

print("imported")


def handler(event, context):
    return answer(event["body"]["do"], event["body"]["with"])
