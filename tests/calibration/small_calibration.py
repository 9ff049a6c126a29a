"""The smallest calibration: its options, and times that its search is told.

Measured times are noise for layers as small as those of the deep bundle.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir
import pytest

from mutoscope.calibration import candidates
from mutoscope.calibration.layer_timing import GroupTiming
from mutoscope.calibration.layers import find_layers

PROMPTS = "a red circle\na blue circle\n"
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
UNET = ("unet",)
INT8_FILES = {
    f"{component}/{name}{end}"
    for component in COMPONENTS
    for name in ("model_int8.onnx", "model_int8_cpu.onnx")
    for end in ("", ".data")
}
CALIBRATION_FILES = {f"calibration/{c}.{end}" for c in COMPONENTS[1:] for end in ("json", "npz")}
NUM_STEPS = 4
# No PSNR is more than 200 or less than -200.
IMPOSSIBLE_DB, ANY_DB = 250.0, -200.0

SECONDS_FLOAT, SECONDS_INT8 = 2e-3, 1e-3


def make_up_times(
    monkeypatch: pytest.MonkeyPatch,
    *,
    slower: Collection[str] = (),
    slower_as_a_whole: bool = False,
) -> None:
    """Let every layer be twice as fast in int8, but for those that are named."""

    def measure_groups(source, names, feeds, options, *, is_dynamic=False):
        times = (SECONDS_FLOAT, SECONDS_INT8)
        return [
            GroupTiming((name,), *(reversed(times) if name in slower else times))
            for name in sorted(names)
        ]

    def race(engines, feeds):
        times = SECONDS_FLOAT, SECONDS_INT8
        return times[::-1] if slower_as_a_whole else times

    monkeypatch.setattr(candidates, "measure_groups", measure_groups)
    monkeypatch.setattr(candidates, "race", race)


def read_files(path):
    """All that lies beside and in a bundle."""
    folder = path.parent
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def check_complete(choice, path, component):
    """Each layer of the graph is in int8, or the report says why it is not."""
    layers = find_layers(onnx_ir.load(path / component / "model.onnx"))
    names = [layer.name for layer in layers]
    assert sorted([*choice.processors_layers, *choice.float_layers]) == sorted(names)
    assert all(choice.float_layers.values())


def count_int8(path):
    """How many weights of a graph are int8."""
    graph = onnx_ir.load(path).graph
    return sum(name.endswith(".int8") for name in graph.initializers)


def list_labels(calls):
    return list(dict.fromkeys(label for label, _, _ in calls))


def stop_at(label, done, error):
    """What raises an error at a place of the work."""

    def on_progress(now, count, _total):
        if now == label and count == done:
            raise error

    return on_progress
