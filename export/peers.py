"""A component of a checkpoint in PyTorch, as its users run it: a worker for `mutoscope bench`.

See `mutoscope.runtime.benchmarks.worker`, which starts it by name.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from mutoscope.engines.engine import Tensors
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.opening import open_model
from mutoscope.export.reuse_export import find_reuse_layers, make_reusable
from mutoscope.runtime.benchmarks.worker import Model, OpenModel, serve
from mutoscope.runtime.manifest import MANIFEST_NAME, Manifest


class TorchModel:
    """A component of a checkpoint, loaded by diffusers. See `Model`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Load it.

        Args:
            settings: "bundle" and "component"; "checkpoint" and the "options" it is opened with;
                "dtype", a name of torch's; "compiled": by torch.compile, when it first runs.

        Raises:
            CheckpointError: The checkpoint cannot be opened.
            ExportParityError: The bundle is of another checkpoint.
        """
        self._stack = ExitStack()
        checkpoint, options = settings["checkpoint"], settings["options"]
        work_folder = Path(tempfile.gettempdir())
        _, family = self._stack.enter_context(open_model(checkpoint, work_folder, **options))
        name = settings["component"]
        if name not in family.component_makers:
            raise ExportParityError(
                f"the checkpoint gives {', '.join(family.component_makers)}, no {name}: the bundle "
                "is of another one"
            )
        manifest = Manifest.load(Path(settings["bundle"]) / MANIFEST_NAME)
        component = make_reusable(family.component_makers[name], find_reuse_layers(manifest))
        _check_same(component, manifest)
        dtype = torch.float32 if component.float32_only else getattr(torch, settings["dtype"])
        self._outputs = tuple(component.outputs)
        self._module: Any = component.module.to(dtype)
        self._properties = {
            "engine": "torch.compile" if settings["compiled"] else "torch",
            "version": torch.__version__,
            "diffusers": diffusers.__version__,
            "precision": str(dtype).removeprefix("torch."),
            "num_threads": str(torch.get_num_threads()),
        }
        if settings["compiled"]:
            self._module = torch.compile(self._module)

    @property
    def properties(self) -> Mapping[str, str]:
        """Versions, precision and threads."""
        return self._properties

    def run(self, feeds: Tensors) -> Tensors:
        """Return the outputs for these inputs."""
        with torch.inference_mode():
            results = self._module(
                # What may not be written to, torch takes with a warning only.
                **{
                    name: torch.from_numpy(np.require(array, requirements="W"))
                    for name, array in feeds.items()
                }
            )
        tensors = results if isinstance(results, tuple) else (results,)
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def close(self) -> None:
        """Free the weights."""
        del self._module
        self._stack.close()


def make_opener(settings: Mapping[str, Any]) -> OpenModel:
    """Return what loads the component that the settings name; see `TorchModel`."""
    if settings["num_threads"] is not None:
        torch.set_num_threads(settings["num_threads"])

    def open_torch(feeds: Tensors) -> Model:
        return TorchModel(settings)

    return open_torch


def _check_same(component: ComponentExport, manifest: Manifest) -> None:
    """Raise `ExportParityError` unless a bundle's component takes and returns the same."""
    record = manifest.components[component.name]
    if component.inputs != record.inputs or component.outputs != record.outputs:
        raise ExportParityError(
            f"{component.name} takes or returns other shapes than the checkpoint's: the bundle is "
            "of another checkpoint"
        )


if __name__ == "__main__":
    serve(make_opener(json.loads(sys.argv[1])))
