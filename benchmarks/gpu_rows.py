"""The rows of benchmarks/gpu.py: what runs, what it computes in, and why it may not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mutoscope.engines.opening import check_available
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import MutoscopeError, ParameterError

DTYPES: Final = ("float32", "float16", "int8")
# By the name in the table: whether it is compiled.
PEERS: Final = {"diffusers": False, "torch-compile": True}
# By the name in the table: what `VideoPipeline.open` is told.
OWN: Final[dict[str, dict[str, Any]]] = {
    "onnxruntime-cpu": {},
    "onnxruntime-cuda": {"execution_provider": "cuda"},
    "onnxruntime-tensorrt": {"execution_provider": "tensorrt"},
    "onnxruntime-tensorrt-rtx": {"execution_provider": "tensorrt-rtx"},
    "tensorrt": {"engine": "tensorrt"},
    "tensorrt-graphs": {"engine": "tensorrt", "cuda_graphs": True},
    "tensorrt-rtx": {"engine": "tensorrt-rtx"},
    "tensorrt-rtx-graphs": {"engine": "tensorrt-rtx", "cuda_graphs": True},
}
# Of the rows that run on a CPU, what stands for the GPU's.
CPU_ONLY: Final = "onnxruntime-cpu"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: What runs, a key of PEERS or OWN.
        dtype: What it computes in.
    """

    name: str
    dtype: str

    def __str__(self) -> str:
        """Return the row as people name it: `tensorrt float16`."""
        return f"{self.name} {self.dtype}"

    @property
    def is_peer(self) -> bool:
        """Whether it runs the checkpoint, not the bundle."""
        return self.name in PEERS

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `VideoPipeline.open`, of one of ours."""
        return {**OWN[self.name], "variant": self.dtype}

    @property
    def engine(self) -> str | None:
        """The engine that must be built of the bundle first, if one must."""
        engine: str | None = None if self.is_peer else OWN[self.name].get("engine")
        return engine


def list_rows(device: str, only: Sequence[str] = ()) -> list[Row]:
    """Return the rows in the order of the table.

    Args:
        device: "cuda", or "cpu" to have a row of onnxruntime on the CPU too.
        only: Names of what runs, numeric types, or rows such as "tensorrt float16"; none for all.

    Raises:
        ParameterError: `only` has what is none of them.
    """
    names = [name for name in (*PEERS, *OWN) if device == "cpu" or name != CPU_ONLY]
    rows = [Row(name, dtype) for name in names for dtype in DTYPES]
    for wanted in only:
        if not any(wanted in (row.name, row.dtype, str(row)) for row in rows):
            raise ParameterError(
                f"--only is {wanted!r}: use one of {', '.join((*names, *DTYPES))}, or two of them "
                f"such as {str(rows[0])!r}"
            )
    return [row for row in rows if not only or {row.name, row.dtype, str(row)} & set(only)]


def find_obstacle(row: Row, bundle: Bundle, checkpoint: Path, device: str) -> str | None:
    """Return why a row cannot run, as far as it is known before anything runs; None if it may."""
    if row.is_peer:
        return _find_peer_obstacle(row, bundle, checkpoint, device)
    if all(row.dtype not in record.variants for record in bundle.manifest.components.values()):
        return f"the bundle has no {row.dtype}: {_make_variant_command(row, bundle, checkpoint)}"
    options = {name: value for name, value in row.options.items() if name != "variant"}
    try:
        check_available(EngineOptions(**options))
    except MutoscopeError as err:
        return str(err)
    return None


def _find_peer_obstacle(row: Row, bundle: Bundle, checkpoint: Path, device: str) -> str | None:
    if row.dtype == "int8":
        return "diffusers has no int8 of its own"
    if device == "cpu" and row.dtype == "float16":
        return "float16 is for GPUs in PyTorch"
    if bundle.manifest.images:
        return "diffusers is compared on models that take a prompt alone"
    if not (checkpoint / "model_index.json").is_file():
        return f"{checkpoint} is no checkpoint of diffusers: give one with --checkpoint"
    return None


def _make_variant_command(row: Row, bundle: Bundle, checkpoint: Path) -> str:
    if row.dtype == "int8":
        return f"mutoscope calibrate {bundle.path}"
    return f"mutoscope export {checkpoint} -o {bundle.path} --dtype {row.dtype} --add"
