import json

from probe import answer

with open("/request.json") as file:
    asked = json.load(file)["body"]
told = answer(asked["do"], asked["with"])
with open("/result.json", "w") as file:
    json.dump({"body": told}, file)
