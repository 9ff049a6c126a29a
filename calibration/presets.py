"""How much a calibration does, under names that people choose by."""

from __future__ import annotations

from dataclasses import dataclass

from mutoscope.calibration.ranges import METHODS


@dataclass(frozen=True)
class Preset:
    """How much is sampled and tried, and what is good enough.

    Attributes:
        num_samples: Clips that ranges are collected of.
        num_judged: Other clips, by which candidates are compared with the float model.
        methods: The ways to find ranges that are tried; the one with the best clips is taken.
        tries_smoothing: Whether the best of them is tried with outliers moved into the weights.
        measures_layers: Whether the effect of each layer is measured, also where no layer has to be
            put back into float.
        min_psnr_db: Of the frames of the judged clips, their median.
    """

    num_samples: int
    num_judged: int
    methods: tuple[str, ...]
    tries_smoothing: bool
    measures_layers: bool
    min_psnr_db: float


PRESETS = {
    "fast": Preset(4, 2, ("minmax",), False, False, 28.0),
    "balanced": Preset(8, 4, METHODS, False, False, 30.0),
    "quality": Preset(32, 16, METHODS, True, True, 36.0),
}
DEFAULT_PRESET = "balanced"
