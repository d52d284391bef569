"""Started once for each call: /request.json holds the event, and /result.json takes the result."""

import json

with open("/request.json", encoding="utf-8") as file:
    body = json.load(file)["body"] or {}
print("greeting", body.get("name", "world"))
with open("/result.json", "w", encoding="utf-8") as file:
    json.dump({"body": {"greeting": f"Hello, {body.get('name', 'world')}!"}}, file)
