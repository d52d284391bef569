"""A process between workers and the container engine: ``python -m worker.engine.proxy``.

Whoever may call the engine's API is as good as root on its machine. A worker that a hostile source or Dockerfile has
taken over is held to what workers do: it can start containers as hardened as every sandbox, remove its own
installation's, and no more. See ``calls`` for what is let through and ``creation`` for what a container may be.
"""
