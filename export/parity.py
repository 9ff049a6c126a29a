"""Compare an exported graph with the module it came from, at sizes it was not traced with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from mutoscope.calibration.metrics import cosine_similarity, max_abs_error, psnr_db
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.runtime.manifest import ParityRecord

# Both run in float32 on a CPU, in another order of additions: 1e-5 of the range, 100 dB, is usual
# and a wrong axis or a lost layer is below 40 dB.
MINIMUM_PSNR_DB = 80.0
MINIMUM_COSINE_SIMILARITY = 0.99999
# A difference of 1e-6 can move a value across the middle between two levels.
MAXIMUM_FRAME_ERROR = 1.0
MINIMUM_FRAME_PSNR_DB = 60.0


def measure_parity(component: ComponentExport, graph_path: Path) -> tuple[ParityRecord, ...]:
    """Return how close the graph comes to the module at each of the component's parity sizes.

    Raises:
        ExportParityError: The graph does not load or run, or returns another shape or type.
    """
    session = _open_session(component.name, graph_path)
    records = []
    for seed, sizes in enumerate(component.parity_sizes, start=1):
        inputs = component.make_inputs(sizes, seed)
        expected = run_module(component, inputs)
        found = _run_session(session, component.name, inputs)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ExportParityError(
                f"{component.name} returns {found.dtype} {found.shape} where the checkpoint "
                f"returns {expected.dtype} {expected.shape}"
            )
        records.append(
            ParityRecord(
                shapes={name: array.shape for name, array in inputs.items()},
                psnr_db=round(psnr_db(expected, found), 2),
                max_abs_error=float(f"{max_abs_error(expected, found):.3g}"),
                cosine_similarity=round(cosine_similarity(expected, found), 9),
            )
        )
    return tuple(records)


def check_parity(component: ComponentExport, records: tuple[ParityRecord, ...]) -> None:
    """Raise `ExportParityError` unless every figure is within the named limits."""
    for record in records:
        problem = _find_problem(component, record)
        if problem:
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape in record.shapes.items())
            raise ExportParityError(
                f"{component.name} does not compute what the checkpoint computes: {problem} "
                f"(at {sizes})"
            )


def run_module(component: ComponentExport, inputs: Arrays) -> NDArray[Any]:
    """Return what the component's module makes of numpy inputs."""
    with quiet_libraries(), torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        output: NDArray[Any] = component.module(**tensors).numpy()
    return output


def _find_problem(component: ComponentExport, record: ParityRecord) -> str | None:
    (output,) = component.outputs.values()
    of_frames = output.dtype == "uint8"
    minimum = MINIMUM_FRAME_PSNR_DB if of_frames else MINIMUM_PSNR_DB
    if not record.psnr_db >= minimum:
        return f"psnr_db is {record.psnr_db:.1f}, the minimum is {minimum:.0f}"
    if of_frames and record.max_abs_error > MAXIMUM_FRAME_ERROR:
        return f"a frame differs by {record.max_abs_error:.0f} of 255"
    if not of_frames and not record.cosine_similarity >= MINIMUM_COSINE_SIMILARITY:
        return (
            f"cosine_similarity is {record.cosine_similarity:.6f}, the minimum is "
            f"{MINIMUM_COSINE_SIMILARITY}"
        )
    return None


def _open_session(name: str, graph_path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its threads would keep cores busy that torch works on in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(graph_path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:  # onnxruntime's errors share no base but Exception
        raise ExportParityError(f"{name} does not load in onnxruntime: {_first_line(err)}") from err


def _run_session(session: Any, name: str, inputs: Arrays) -> NDArray[Any]:
    try:
        (output,) = session.run(None, inputs)
    except Exception as err:  # onnxruntime's errors share no base but Exception
        raise ExportParityError(f"{name} does not run in onnxruntime: {_first_line(err)}") from err
    return np.asarray(output)


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
