"""Functions with a thread that was there after the import, as a sandbox that is used again may have."""

import os
import threading
import time

work = threading.Event()
todo = []


def run():
    work.wait()
    todo[0]()


threading.Thread(target=run, daemon=True).start()


def write_later(event, context):
    def later():
        time.sleep(0.05)
        print("late")
        open(os.environ["HOME"] + "/late", "w").close()

    return start(later)


def burn(event, context):
    def burning():
        while True:
            pass

    return start(burning)


def exit_later(event, context):
    return start(lambda: (time.sleep(0.05), os._exit(9)))


def start(what):
    todo.append(what)
    work.set()
    return "for now"
