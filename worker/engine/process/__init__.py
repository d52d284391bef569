"""The ``process`` engine: child processes of the worker, for development where no container engine answers."""

from worker.engine.process.engine import ProcessEngine

__all__ = ["ProcessEngine"]
