"""A function with a task that its import began, as an application's start-up does."""

import asyncio

rounds = 0


async def forever():
    global rounds
    while True:
        rounds += 1
        await asyncio.sleep(0)


async def begin():
    return asyncio.ensure_future(forever())


loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
task = loop.run_until_complete(begin())
calls = 0


def handler(event, context):
    global calls
    calls += 1
    return calls
