"""The parts of a version: content-addressed layers on a base, which is named by its identity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LayerKind(StrEnum):
    BASE = "base"  # a base image, as its engine saved it
    RUNTIME = "runtime"  # the runtime's in-sandbox side
    DEPENDENCIES = "dependencies"  # installed packages
    CODE = "code"  # the artifact, and what was compiled out of it
    IMAGE = "image"  # a whole image that a function's own Dockerfile made, as its engine saved it


_SHARED = (LayerKind.BASE, LayerKind.RUNTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRef:
    """A layer as versions name it. ``digest`` is the SHA-256 of its uncompressed tar, in hex."""

    kind: LayerKind
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLayers:
    """The layers of a version and their base, fixed once it is built.

    :param base: what the layers stand on: an image's id, or ``process-…`` for a machine's own interpreter.
    """

    base: str
    layers: tuple[LayerRef, ...]

    def of(self, kind: LayerKind) -> LayerRef | None:
        return next((layer for layer in self.layers if layer.kind is kind), None)

    @property
    def foundation(self) -> VersionLayers:
        """The base and the runtime layer: all versions of a runtime that one release built on one base share them."""
        return VersionLayers(base=self.base, layers=tuple(one for one in self.layers if one.kind in _SHARED))

    @property
    def own_bytes(self) -> int:
        """Bytes of the version's own layers: all but the base image and the runtime."""
        return sum(layer.size_bytes for layer in self.layers if layer.kind not in _SHARED)
