from containerpub import Response

GUESTS = {"ada": "Ada Lovelace", "grace": "Grace Hopper"}


def handler(event, context):
    parts = event["path"].strip("/").split("/")
    if event["method"] not in ("GET", "HEAD"):
        return Response(405, {"Allow": "GET, HEAD"}, {"error": "only reading is possible"})
    if parts == [""]:
        return Response(200, {"Content-Type": "text/html; charset=utf-8"}, "<h1>Guests</h1>" + ", ".join(GUESTS))
    if len(parts) != 1 or parts[0] not in GUESTS:
        return Response(404, body={"error": f"no guest called {parts[0]}"})
    name = GUESTS[parts[0]]
    loud = event["query"].get("loud") in ("1", ["1"])
    return Response(200, {"X-Guest": parts[0]}, {"name": name.upper() if loud else name})
