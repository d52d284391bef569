"""Started once for each call: /request.json holds the event, and /result.json takes the result."""

import gzip
import json
import os

with open("/request.json", encoding="utf-8") as file:
    wanted = json.load(file)["body"] or {}
with gzip.open(os.environ["WORDS"], "rt", encoding="utf-8") as file:
    words = file.read().split()
print(f"looking among {len(words)} words")
found = [word for word in words if word.startswith(wanted.get("prefix", ""))]
with open("/result.json", "w", encoding="utf-8") as file:
    json.dump({"body": {"words": found}}, file)
