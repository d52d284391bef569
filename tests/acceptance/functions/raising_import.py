def prepare():
    raise ValueError("not prepared")


prepare()
