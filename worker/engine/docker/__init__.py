"""The ``docker`` engine: containers through the Docker Engine API, of Docker or of Podman's compatible socket."""

from worker.engine.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
