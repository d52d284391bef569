import json

from probe import answer

print("imported")


def app(environ, start_response):
    asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    told = json.dumps({"told": answer(asked["do"], asked["with"])}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [told]
