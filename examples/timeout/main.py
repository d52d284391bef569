def handler(event, context):
    print("working, and never done")
    while True:
        pass
