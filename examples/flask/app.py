from flask import Flask, Response, make_response, request

app = Flask(__name__)
PIXEL = bytes.fromhex("47494638396101000100800000ff0000ffffff2c00000000010001000002024401003b")


@app.get("/")
def index():
    return {"guest": request.cookies.get("guest"), "query": request.args.to_dict()}


@app.post("/guests")
def enter():
    name = request.get_json()["name"]
    answer = make_response({"welcome": name}, 201)
    answer.set_cookie("guest", name)
    answer.set_cookie("seen", "1")
    return answer


@app.get("/pixel.gif")
def pixel():
    return Response(PIXEL, content_type="image/gif")


@app.get("/broken")
def broken():
    raise ZeroDivisionError("on purpose")
