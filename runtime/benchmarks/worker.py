"""The worker of a benchmark: one component in a process of its own, run on command.

    python -m mutoscope.runtime.benchmarks.worker SETTINGS

SETTINGS and each command on stdin are one JSON object in a line; each is answered by one on stdout:

    {"do": "load", "feeds": FILE}                          {"seconds": .., "properties": {..}}
    {"do": "run", "feeds": FILE, "times": N, "outputs": FILE or null}         {"seconds": ..}

FILE is an npz archive with an array for each input, or output. "load" drops what was loaded. An
error of ours is answered {"error": ..}; at any other the worker dies with its text on stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mutoscope.engines.engine import Array, Tensors
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoder import make_decode_plan
from mutoscope.runtime.decoding import decode
from mutoscope.runtime.errors import MutoscopeError
from mutoscope.runtime.manifest import DECODERS
from mutoscope.runtime.timings import Timings


class Model(Protocol):
    """A component that is loaded."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What runs it, for the record."""

    def run(self, feeds: Tensors) -> Tensors:
        """Return its outputs for these inputs."""

    def close(self) -> None:
        """Free its memory."""


# Loads a component, ready for the inputs that it is given.
OpenModel = Callable[[Tensors], Model]


class BundleModel:
    """A component of a bundle, as a generation runs it: a decoder decodes a few frames at a time.

    See `Model`.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        options: EngineOptions,
        feeds: Tensors,
        *,
        variant: str | None = None,
        is_plain: bool,
    ) -> None:
        """Load the component.

        Args:
            bundle: The bundle.
            name: The component.
            options: What runs it.
            feeds: Inputs of the shapes that will come.
            variant: What it computes in; None takes its default variant.
            is_plain: Take the graph as it was exported, not the one for processors.

        Raises:
            BundleError: A file of the bundle is damaged.
            EngineError: The graph cannot be loaded.
        """
        self._plan = None
        shapes = {input_name: array.shape for input_name, array in feeds.items()}
        if name in DECODERS:
            ((input_name, shape),) = shapes.items()
            self._plan = make_decode_plan(bundle, shape, name=name)
            shapes[input_name] = (
                *shape[:2],
                min(self._plan.frames_per_chunk, shape[2]),
                *shape[3:],
            )
        if is_plain:
            self._engine = open_engine(bundle.load_graph(name, variant), options)
        else:
            self._engine = Components(bundle, options, variant).load(name, Timings(), shapes)
        self._engine.prepare(shapes)

    @property
    def properties(self) -> Mapping[str, str]:
        """Those of the engine."""
        return self._engine.properties

    def run(self, feeds: Tensors) -> Tensors:
        """Return the outputs for these inputs."""
        if self._plan is None:
            return dict(self._engine.run(feeds))
        ((input_name, latents),) = feeds.items()
        (output_name,) = self._engine.outputs

        def run(part: Array) -> Array:
            return self._engine.run({input_name: part})[output_name]

        return {output_name: decode(run, latents, self._plan)[None]}

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def serve(open_model: OpenModel) -> None:
    """Answer the commands on stdin until it ends."""
    # Libraries may print to stdout; the answers keep it for themselves.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        session = _Session(open_model)
        for line in sys.stdin:
            try:
                answer = session.answer(json.loads(line))
            except MutoscopeError as err:
                answer = {"error": str(err)}
            print(json.dumps(answer), file=answers, flush=True)


class _Session:
    """What a worker has loaded."""

    def __init__(self, open_model: OpenModel) -> None:
        self._open_model = open_model
        self._model: Model | None = None
        self._feeds: dict[str, Tensors] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        feeds = self._read_feeds(command["feeds"])
        if command["do"] == "load":
            return self._load(feeds)
        assert self._model is not None
        started = time.perf_counter()
        for _ in range(command["times"]):
            outputs = self._model.run(feeds)
        seconds = time.perf_counter() - started
        if command["outputs"]:
            save_arrays(command["outputs"], outputs)
        return {"seconds": seconds}

    def _load(self, feeds: Tensors) -> dict[str, Any]:
        if self._model is not None:
            self._model.close()
            self._model = None
            gc.collect()
        started = time.perf_counter()
        self._model = self._open_model(feeds)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "properties": dict(self._model.properties)}

    def _read_feeds(self, path: str) -> Tensors:
        if path not in self._feeds:
            with np.load(path) as archive:
                self._feeds[path] = dict(archive)
        return self._feeds[path]


def save_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays into the archive from which a worker, or who started it, reads them."""
    np.savez(path, **arrays)


def make_opener(settings: dict[str, Any]) -> OpenModel:
    """Return what loads the component that the settings name."""
    bundle, component = Bundle.open(settings["bundle"]), settings["component"]
    num_threads = settings["num_threads"]
    if settings["kind"] == "own":
        variant = settings.get("variant")
    else:
        # The others are measured by what the checkpoint computes, not by what was made of it.
        variant = bundle.find_component(component).choose_variant("float32")
    if settings["kind"] == "openvino":
        from mutoscope.runtime.benchmarks.plain_openvino import PlainOpenvino

        graph = bundle.load_graph(component, variant)
        return lambda feeds: PlainOpenvino(graph, settings["precision"], num_threads)
    options = EngineOptions(
        settings["engine"], settings["execution_provider"], num_threads, settings["memory"]
    )
    is_plain = settings["kind"] == "plain"
    return lambda feeds: BundleModel(
        bundle, component, options, feeds, variant=variant, is_plain=is_plain
    )


if __name__ == "__main__":
    serve(make_opener(json.loads(sys.argv[1])))
