"""An engine in place of another, for what watches or switches what runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mutoscope.engines.engine import Array, Engine, Tensors, TensorSpec


class ForwardingEngine:
    """An engine that is another one; it leaves that open when it is closed."""

    def __init__(self, engine: Engine) -> None:
        """Stand for an engine."""
        self._engine = engine

    @property
    def device(self) -> str:
        """That of the engine."""
        return self._engine.device

    @property
    def properties(self) -> Mapping[str, str]:
        """Those of the engine."""
        return self._engine.properties

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Those of the engine."""
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Those of the engine."""
        return self._engine.outputs

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """That of the engine."""
        return self._engine.memory_bytes

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """As the engine does."""
        self._engine.prepare(shapes)

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """As the engine does."""
        return self._engine.run(feeds, outputs, wanted)

    def close(self) -> None:
        """Nothing: the engine is somebody else's."""
