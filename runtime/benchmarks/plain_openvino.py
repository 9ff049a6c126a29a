"""OpenVINO as its users have it: it reads the exported graph and is left at its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mutoscope.engines.engine import Tensors


class PlainOpenvino:
    """A graph in OpenVINO with dynamic shapes. See `mutoscope.runtime.benchmarks.worker.Model`."""

    def __init__(self, graph: Path, precision: str, num_threads: int | None) -> None:
        """Load the ONNX file at `graph`; `precision` is "f32" or "bf16"."""
        import openvino

        # Its own choice of precision depends on the processor, so it is always stated.
        config: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision}
        if num_threads is not None:
            config["INFERENCE_NUM_THREADS"] = num_threads
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(graph), "CPU", config)
        self._request = self._compiled.create_infer_request()
        self._properties = {
            "engine": "openvino",
            "version": str(openvino.get_version()),
            "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        }

    @property
    def properties(self) -> Mapping[str, str]:
        """Its version and the precision that it says it computes in."""
        return self._properties

    def run(self, feeds: Tensors) -> Tensors:
        """Return the outputs for these inputs: its own memory, valid until the next run."""
        results = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        return {output.any_name: results[output] for output in self._compiled.outputs}

    def close(self) -> None:
        """Free the graph."""
        del self._request, self._compiled
