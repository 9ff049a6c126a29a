"""Prove that an engine does what onnxruntime does on the CPU, before it is used.

On inputs of a generation, of the usual size of the engine and of its least one, each output is
compared with that of the same graph. The proof lies beside the engine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from mutoscope.engines.engine import Array, Engine, Tensors
from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.engines.options import EngineOptions
from mutoscope.engines.tensorrt_build import TensorrtBuildOptions
from mutoscope.engines.tensorrt_platform import make_platform
from mutoscope.runtime.built_engines import PROOF_NAME, BuiltEngine, ProofRecord
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.engine_choice import open_found, use_built
from mutoscope.runtime.errors import EngineError, OutputError
from mutoscope.runtime.json_records import write_record
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.outputs import new_file
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.shape_ranges import ClipRange, ClipSize, make_shape_ranges

# What other kernels may change. float32 may be multiplied in TF32, with the 10 bits of mantissa of
# float16; in int8 a value near the middle of two steps may be rounded to the other one, and what
# was calibrated is 30 to 40 dB from float32 already.
MINIMUM_PSNR_DB: Final = {"float32": 50.0, "float16": 40.0, "int8": 30.0}
_OTHER_MINIMUM_PSNR_DB: Final = 40.0

_SEED = 0
_NUM_WARM_UPS = 2
_NUM_RUNS = 5


class EngineProver:
    """Compares the built engines of one bundle; inputs are made once for each size of a clip."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        """Prepare to compare.

        Args:
            bundle: The bundle.
            options: How the engines are run; `num_threads` is for onnxruntime on the CPU too.
        """
        self._bundle = bundle
        self._options = options
        self._inputs: dict[ClipSize, dict[str, Tensors]] = {}

    def prove(self, built: BuiltEngine) -> ProofRecord:
        """Run an engine and onnxruntime, write how close they are beside the engine, return it.

        Raises:
            BundleError: A file of the bundle is damaged.
            EngineError: The engine cannot be loaded or run here.
            OutputError: The proof cannot be written.
        """
        record = built.tensorrt
        if built.misfit or not record or built.variant is None:
            raise EngineError(f"{built.folder.name} cannot be loaded here: {built.misfit}")
        usual, least = record.clips.optimum, record.clips.minimum
        feeds = {
            size: self._make_feeds(built.component, size, record.clips.batch)
            for size in dict.fromkeys((usual, least))
        }
        # Before the engine is loaded: a Jetson has one memory for both.
        expected = self._run_on_cpu(built, feeds)
        engine = open_found(use_built(self._bundle, built, self._options))
        try:
            closeness = [_compare(expected[size], engine.run(feeds[size])) for size in feeds]
            seconds = _measure(engine, feeds[usual])
            memory = dict(engine.memory_bytes)
            device = engine.properties["device"]
        finally:
            engine.close()
        proof = ProofRecord(
            psnr_db=min(closeness),
            minimum_psnr_db=MINIMUM_PSNR_DB.get(built.variant, _OTHER_MINIMUM_PSNR_DB),
            seconds_run=seconds,
            memory_bytes=memory,
            device=device,
            platform=make_platform(record.platform.engine, TensorrtBuildOptions()),
        )
        _write(built.folder / PROOF_NAME, proof)
        return proof

    def _run_on_cpu(
        self, built: BuiltEngine, feeds: Mapping[ClipSize, Tensors]
    ) -> dict[ClipSize, Tensors]:
        """What the graph that an engine was built of makes of inputs, with onnxruntime."""
        graph = self._bundle.load_graph(built.component, built.variant)
        engine = OnnxruntimeEngine(graph, num_threads=self._options.num_threads, memory="low")
        try:
            return {size: engine.run(tensors) for size, tensors in feeds.items()}
        finally:
            engine.close()

    def _make_feeds(self, name: str, size: ClipSize, batch: int) -> Tensors:
        """Inputs of a component in a generation of this size, as many as one run takes."""
        ranges = make_shape_ranges(self._bundle, name, ClipRange(size, size, size, batch))
        if size not in self._inputs:
            settings = make_settings(
                self._bundle,
                seed=_SEED,
                width=size.width,
                height=size.height,
                num_frames=size.num_frames,
            )
            self._inputs[size] = make_inputs(self._bundle, settings, self._options.num_threads)
        feeds = self._inputs[size][name]
        return {key: _fit(array, ranges[key].optimum) for key, array in feeds.items()}


def _fit(array: Array, shape: tuple[int, ...]) -> Array:
    """An array cut or repeated along each axis to a shape."""
    for axis, length in enumerate(shape):
        if length != array.shape[axis]:
            array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
    return np.asarray(array, order="C")


def _compare(expected: Tensors, actual: Tensors) -> float:
    """The PSNR of the worst output, in dB."""
    return min(
        psnr_db(array, actual[name]) if array.shape == actual[name].shape else -np.inf
        for name, array in expected.items()
    )


def _measure(engine: Engine, feeds: Tensors) -> float:
    """The median time of a run that is warm, with the results in arrays that are used again."""
    outputs = engine.run(feeds)
    seconds = []
    for _ in range(_NUM_WARM_UPS + _NUM_RUNS):
        start = time.perf_counter()
        engine.run(feeds, outputs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_NUM_WARM_UPS:])


def _write(path: Path, proof: ProofRecord) -> None:
    try:
        with new_file(path) as temporary:
            temporary.write_text(json.dumps(write_record(proof), indent=1))
    except OSError as err:
        raise OutputError(f"{path} cannot be written: {err.strerror or err}") from err
