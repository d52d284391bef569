"""Functions that log by the standard library, each as their authors do in a plain program."""

import logging
import logging.config
import os
import sys

logging.getLogger("early").warning("from the import")


def root(event, context):
    logging.getLogger().setLevel(logging.INFO)
    logging.info("info %d", 1)
    logging.warning("warning")
    logging.debug("not asked for")


def named(event, context):
    logging.getLogger().setLevel(logging.DEBUG)
    logger = logging.getLogger(__name__)
    logger.debug("debug")
    logger.info("info")
    logging.getLogger("package.module").critical("critical")


def own_level(event, context):
    logger = logging.getLogger("mine")
    logger.setLevel(logging.INFO)
    logger.info("info")
    logging.getLogger("other").info("not asked for")


def basic(event, context):
    logging.basicConfig(level=logging.INFO)
    logging.getLogger(__name__).info("info")
    logging.error("error")
    assert len(logging.getLogger().handlers) == 1


def formatted(event, context):
    logging.basicConfig(level="INFO", format="%(name)s: %(message)s", force=True)
    logging.getLogger("mine").info("info")


def unset(event, context):
    logging.getLogger("quiet").info("not asked for")
    logging.getLogger("quiet").warning("warning")


def failing(event, context):
    try:
        int("one")
    except ValueError:
        logging.getLogger(__name__).exception("caught")


def elsewhere(event, context):
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    logging.info("to stdout")


def configured(event, context):
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
            "root": {"level": "INFO", "handlers": ["console"]},
        }
    )
    logging.getLogger("mine").info("to stdout")


def in_child(event, context):
    sys.stdout.flush()
    if os.fork() == 0:
        logging.error("of a child")
        os._exit(0)
    os.wait()
