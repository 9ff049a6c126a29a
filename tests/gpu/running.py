"""What runs on a GPU in the tests, on what inputs, and what the CPU gives for them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.engines.engine import Engine, Tensors
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.opening import check_available
from mutoscope.engines.options import TENSORRT_MODULES, EngineOptions
from mutoscope.engines.tensorrt_build import TensorrtBuildOptions, check_build_options
from mutoscope.runtime.built_engines import find_built
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoder import make_decode_plan
from mutoscope.runtime.engine_choice import open_found, use_built
from mutoscope.runtime.errors import EngineError
from mutoscope.runtime.manifest import DECODERS
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.timings import Timings

BUNDLES = ("shipped", "tiny", "modelscope", "svd")
VARIANTS = ("float32", "float16", "int8")
SEED = 3


@dataclass(frozen=True)
class EngineCase:
    """One way to run a graph on a GPU."""

    engine: str
    execution_provider: str = "cpu"

    def __str__(self) -> str:
        is_built = self.engine in TENSORRT_MODULES
        return self.engine if is_built else f"{self.engine}-{self.execution_provider}"

    def make_options(self, **changes: Any) -> EngineOptions:
        """Return the options of an engine; skips the test if this machine does not have it."""
        options = EngineOptions(self.engine, self.execution_provider, **changes)
        try:
            check_available(options)
            if self.engine in TENSORRT_MODULES:
                check_build_options(self.engine, TensorrtBuildOptions())
        except EngineError as err:
            pytest.skip(str(err))
        return options


PROVIDERS = tuple(EngineCase("onnxruntime", name) for name in ("cuda", "tensorrt", "tensorrt-rtx"))
TENSORRT = tuple(EngineCase(name) for name in TENSORRT_MODULES)


@contextmanager
def open_component(
    path: Path, name: str, options: EngineOptions, variant: str, feeds: Tensors | None = None
) -> Iterator[Engine]:
    """Open a component as a generation does, for inputs of these shapes, and close it."""
    components = Components(Bundle.open(path), options, variant)
    shapes = None if feeds is None else {key: array.shape for key, array in feeds.items()}
    try:
        yield components.load(name, Timings(), shapes)
    finally:
        components.unload(name)


@contextmanager
def open_built(path: Path, record: dict[str, Any], options: EngineOptions) -> Iterator[Engine]:
    """Open the very engine that `mutoscope build --json` tells of, and close it."""
    bundle, folder = Bundle.open(path), Path(record["folder"])
    all_built = find_built(bundle, record["component"], record["variant"])
    (built,) = (built for built in all_built if built.folder == folder)
    engine = open_found(use_built(bundle, built, options))
    try:
        yield engine
    finally:
        engine.close()


@functools.cache
def make_feeds(path: Path, **sizes: int) -> dict[str, Tensors]:
    """Return the inputs of each component in a generation; a decoder's as many as fit a run."""
    bundle = Bundle.open(path)
    feeds = make_inputs(bundle, make_settings(bundle, seed=SEED, **sizes))
    for name in DECODERS:
        for input_name, latents in feeds.get(name, {}).items():
            count = make_decode_plan(bundle, latents.shape, name=name).frames_per_chunk
            feeds[name][input_name] = np.ascontiguousarray(latents[:, :, :count])
    return feeds


@functools.cache
def run_on_cpu(path: Path, name: str, variant: str, **sizes: int) -> Tensors:
    """Return the outputs of a component's graph with onnxruntime on the CPU."""
    engine = OnnxruntimeEngine(Bundle.open(path).load_graph(name, variant))
    try:
        return engine.run(make_feeds(path, **sizes)[name])
    finally:
        engine.close()


def measure_psnr(expected: Tensors, found: Tensors) -> float:
    """Return the PSNR of the worst output in dB."""
    assert expected.keys() == found.keys()
    return min(psnr_db(expected[name], found[name]) for name in expected)
