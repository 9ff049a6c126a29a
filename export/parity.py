"""Compare an exported graph with the module it came from, at sizes it was not traced with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from mutoscope.engines.onnxruntime_module import error_types, first_line
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.runtime.manifest import ParityRecord
from mutoscope.runtime.metrics import cosine_similarity, max_abs_error, psnr_db


@dataclass(frozen=True)
class ParityLimits:
    """How far a graph may be from the checkpoint.

    Attributes:
        minimum_psnr_db: Of an output of floats, as is `minimum_cosine_similarity`.
        maximum_frame_error: Of frames, in levels of 255, as is `minimum_frame_psnr_db`.
    """

    minimum_psnr_db: float
    minimum_cosine_similarity: float
    minimum_frame_psnr_db: float
    maximum_frame_error: float


@dataclass(frozen=True)
class Reference:
    """What the checkpoint makes of one set of inputs."""

    inputs: Arrays
    outputs: Arrays


PARITY_LIMITS = {
    # Both run in float32 on a CPU, in another order of additions: 1e-5 of the range, 100 dB, is
    # usual and a wrong axis or a lost layer is below 40 dB. A difference of 1e-6 can move a value
    # across the middle between two levels of a frame.
    "float32": ParityLimits(80.0, 0.99999, 60.0, 1.0),
    # float16 keeps 11 bits: each rounding is up to 5e-4 of a value, and after all layers results
    # are 1e-3 to 3e-3 off: 70 dB of their range, and 60 dB or 1 level of a frame, where every
    # operator rounds (tests/export/test_float16.py), 5 to 20 dB more where onnxruntime's CPU
    # provider keeps float32 in between. The limits leave 15 to 20 dB for deeper models, and stay
    # above the 40 dB of a wrong graph.
    "float16": ParityLimits(50.0, 0.9999, 45.0, 8.0),
}


def make_references(component: ComponentExport) -> tuple[Reference, ...]:
    """Return what the component's module makes of random inputs of each of its parity sizes."""
    all_inputs = [
        component.make_inputs(sizes, seed)
        for seed, sizes in enumerate(component.parity_sizes, start=1)
    ]
    return tuple(Reference(inputs, run_module(component, inputs)) for inputs in all_inputs)


def measure_parity(
    component: ComponentExport, graph_path: Path, references: tuple[Reference, ...]
) -> tuple[ParityRecord, ...]:
    """Return how close the graph comes to each of the references.

    Raises:
        ExportParityError: The graph does not load or run, or returns another shape or type.
    """
    session = _open_session(component.name, graph_path)
    records = []
    for reference in references:
        found = _run_session(session, component, reference.inputs)
        for name, expected in reference.outputs.items():
            records.append(_compare(component.name, name, reference, expected, found[name]))
    return tuple(records)


def check_parity(
    component: ComponentExport, records: tuple[ParityRecord, ...], dtype: str = "float32"
) -> None:
    """Raise `ExportParityError` unless every figure is within the limits of the graph's type."""
    if dtype not in PARITY_LIMITS:
        raise ExportParityError(
            f"{component.name} is of the variant {dtype}, for which there are no limits "
            f"(there are for {', '.join(PARITY_LIMITS)})"
        )
    for record in records:
        problem = _find_problem(component, record, PARITY_LIMITS[dtype])
        if problem:
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape in record.shapes.items())
            raise ExportParityError(
                f"{component.name} does not compute what the checkpoint computes: {problem} "
                f"(at {sizes})"
            )


def run_module(component: ComponentExport, inputs: Arrays) -> Arrays:
    """Return what the component's module makes of numpy inputs, by the names of its outputs."""
    with quiet_libraries(), torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        result = component.module(**tensors)
    results = result if isinstance(result, tuple) else (result,)
    return {name: tensor.numpy() for name, tensor in zip(component.outputs, results, strict=True)}


def _compare(
    component_name: str,
    output: str,
    reference: Reference,
    expected: NDArray[Any],
    found: NDArray[Any],
) -> ParityRecord:
    """Return the figures of one output; raises `ExportParityError` for another shape or type."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ExportParityError(
            f"{component_name} returns {output} as {found.dtype} {found.shape} where the "
            f"checkpoint returns {expected.dtype} {expected.shape}"
        )
    return ParityRecord(
        shapes={name: array.shape for name, array in reference.inputs.items()},
        psnr_db=round(psnr_db(expected, found), 2),
        max_abs_error=float(f"{max_abs_error(expected, found):.3g}"),
        cosine_similarity=round(cosine_similarity(expected, found), 9),
        output=output,
    )


def _find_problem(
    component: ComponentExport, record: ParityRecord, limits: ParityLimits
) -> str | None:
    of_frames = component.outputs[record.output].dtype == "uint8"
    minimum = limits.minimum_frame_psnr_db if of_frames else limits.minimum_psnr_db
    if not record.psnr_db >= minimum:
        return f"psnr_db is {record.psnr_db:.1f}, the minimum is {minimum:.0f}"
    if of_frames and record.max_abs_error > limits.maximum_frame_error:
        return f"a frame differs by {record.max_abs_error:.0f} of 255"
    if not of_frames and not record.cosine_similarity >= limits.minimum_cosine_similarity:
        return (
            f"cosine_similarity is {record.cosine_similarity:.6f}, the minimum is "
            f"{limits.minimum_cosine_similarity}"
        )
    return None


def _open_session(name: str, graph_path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its threads would keep cores busy that torch works on in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights stay in their file instead of being copied into layouts that a few runs do not repay.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(
            str(graph_path), options, providers=["CPUExecutionProvider"]
        )
    except error_types() as err:
        raise ExportParityError(f"{name} does not load in onnxruntime: {first_line(err)}") from err


def _run_session(session: Any, component: ComponentExport, inputs: Arrays) -> Arrays:
    names = list(component.outputs)
    try:
        outputs = session.run(names, inputs)
    except error_types() as err:
        raise ExportParityError(
            f"{component.name} does not run in onnxruntime: {first_line(err)}"
        ) from err
    return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}
