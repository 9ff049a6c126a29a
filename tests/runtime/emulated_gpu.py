"""A machine with a GPU, as far as the runtime sees one: what a plan says is run by onnxruntime.

It shows what becomes of a plan: whether it is found, compared, chosen and run, for which shapes.
It shows nothing of TensorRT's results or speed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines import cuda_device, tensorrt_engine, tensorrt_platform
from mutoscope.engines.cuda_device import GpuRecord
from mutoscope.engines.engine import Array, Tensors, TensorSpec, check_feeds
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.runtime import built_engines, engine_choice
from mutoscope.runtime.built_engines import load_record
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.shape_ranges import make_shape_ranges

GPU = GpuRecord("Test GPU", "sm86", 2**30, is_integrated=False, driver_version="1.0")


@dataclasses.dataclass
class EmulatedGpu:
    """What the machine has, to be changed by a test.

    Attributes:
        gpu: Its GPU; None for a machine without.
        error: Added to each output, or "nan".
        slow: The seconds that a run of a plan of this graph takes longer.
        opened: The plans that were opened, with the options of each.
    """

    gpu: GpuRecord | None = GPU
    error: float | str = 0.0
    slow: dict[str, float] = dataclasses.field(default_factory=dict)
    opened: list[tuple[Path, dict[str, Any]]] = dataclasses.field(default_factory=list)


class EmulatedEngine(ForwardingEngine):
    """Runs the graph that a plan was built of, for the shapes that it was built for."""

    def __init__(self, machine: EmulatedGpu, plan: Path, **options: Any) -> None:
        machine.opened.append((plan, options))
        self._machine = machine
        record = load_record(plan.parent)
        assert record.tensorrt is not None
        bundle = Bundle.open(plan.parents[3])
        super().__init__(OnnxruntimeEngine(bundle.path / record.graph))
        ranges = make_shape_ranges(bundle, record.component, record.tensorrt.clips)
        self._seconds = machine.slow.get(record.graph, 0.0)
        self._limits = {
            name: dataclasses.replace(
                spec, minimum=ranges[name].minimum, maximum=ranges[name].maximum
            )
            for name, spec in super().inputs.items()
        }

    @property
    def device(self) -> str:
        return "cuda"

    @property
    def properties(self) -> Mapping[str, str]:
        return {"engine": "emulated", "version": "1", "device": GPU.name, "precision": "float32"}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._limits

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        return {"weights": 3000, "activations": 2000}

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        check_feeds("emulated", self._limits, feeds)
        results = super().run(feeds, outputs, wanted)
        wrong = np.nan if self._machine.error == "nan" else float(self._machine.error)
        for array in results.values() if wrong else ():
            with np.errstate(invalid="ignore"):
                array[...] = (array + wrong).astype(array.dtype)
        time.sleep(self._seconds)
        return results

    def close(self) -> None:
        self._engine.close()


@contextmanager
def emulate_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    """Let this machine have a GPU until the test ends."""
    machine = EmulatedGpu()
    list_gpus = cuda_device.list_gpus

    def list_emulated() -> tuple[GpuRecord, ...]:
        return list_gpus() if machine.gpu is None else (machine.gpu,)

    def open_emulated(plan: Path, **options: Any) -> EmulatedEngine:
        return EmulatedEngine(machine, plan, **options)

    for module in (cuda_device, tensorrt_platform, built_engines, engine_choice):
        monkeypatch.setattr(module, "list_gpus", list_emulated)
    monkeypatch.setattr(tensorrt_engine, "TensorrtEngine", open_emulated)
    yield machine
