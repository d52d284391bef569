def handler(event, context):
    held = []
    while True:
        # only pages that were written to count
        held.append(bytearray(b"x") * (8 * 1024 * 1024))
        print(f"holding {8 * len(held)} MB", flush=True)
