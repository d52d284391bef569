"""The functions that are measured, and what they answer."""

from __future__ import annotations

HELLO = """
def handler(event, context):
    name = (event["body"] or {}).get("name", "world")
    print(f"greeting {name}")
    return {"greeting": f"Hello, {name}!"}
"""
HELLO_BODY = {"name": "Ada"}
HELLO_RESULT = {"greeting": "Hello, Ada!"}
HELLO_ANSWER = '"success":true,"result":{"greeting":"Hello, Ada!"}'

SLEEP = """
import time

def handler(event, context):
    time.sleep(event["body"])
    return "slept"
"""
SLEEP_RESULT = "slept"
SLEEP_ANSWER = '"success":true,"result":"slept"'

ACCEPTED_ANSWER = '{"job_id":"'


def unlike_any(code: str, number: int) -> str:
    """``code`` as an artifact that nothing was built from yet."""
    return f"{code}\nNUMBER = {number}\n"
