from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def index():
    return {"hello": request.args.get("name", "world")}


@app.post("/")
def greet():
    name = (request.get_json(silent=True) or {}).get("name", "world")
    app.logger.warning("greeting %s", name)
    return {"greeting": f"Hello, {name}!"}, 201
