"""Where functions run: the engines and how one is chosen."""

from __future__ import annotations

from worker.build.layer_store import LayerStore
from worker.config import EngineConfig
from worker.engine.contract import Engine


def make_engine(name: str, config: EngineConfig, layers: LayerStore) -> Engine:
    """The engine called ``name``; not contacted yet (see :meth:`Engine.open`)."""
    if name == "docker":
        from worker.engine.docker.engine import DockerEngine

        return DockerEngine(config, layers)
    if name == "process":
        from worker.engine.process.engine import ProcessEngine

        return ProcessEngine(config, layers)
    raise ValueError(f"no engine is called {name}")
