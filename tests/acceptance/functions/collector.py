import gc
import os

if "THRESHOLD" in os.environ:
    gc.set_threshold(int(os.environ["THRESHOLD"]))


def usual(event, context):
    return gc.get_threshold()


own = usual
