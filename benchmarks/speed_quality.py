"""What benchmarks.speed_table says of the clips of one setting: prompts, steadiness, nearness.

Each clip is made once: what was found is kept in a folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.clip_reader import ClipReading, read_clip
from benchmarks.prompt_accuracy import score_readings
from benchmarks.speed_bundle import Setting
from mutoscope.runtime.evaluation.consistency import average_figures, measure_consistency
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.outputs import new_file
from training.clips import ClipAttributes

U8 = NDArray[np.uint8]

FIGURES: Final = ("flicker", "warping_error")
UNNAMED_STRIDE: Final = 4
"""Of the prompts, every fourth is also asked for without its background."""
_KEPT_EVERY: Final = 8


class Generator(Protocol):
    """What makes clips."""

    def generate(self, setting: Setting, prompt: str, seed: int) -> U8:
        """Return the frames of a clip, uint8 [F, H, W, 3]."""


def measure_quality(
    clips: Generator, setting: Setting, wanted: Sequence[ClipAttributes], folder: Path
) -> dict[str, Any]:
    """Return how well clips follow their prompts, how steady they are, and how near to others.

    The n-th prompt has seed n in every setting. The PSNR is against the clips of the setting that
    is the reference, which has to come first.

    Args:
        clips: What makes them.
        setting: How.
        wanted: What each clip is asked to show.
        folder: Where what was found is kept, and found again.
    """

    def judge(index: int, frames: U8) -> dict[str, Any]:
        figures = measure_consistency(frames).list_figures()
        found: dict[str, Any] = {
            "reading": asdict(read_clip(frames)),
            "figures": {name: figures[name] for name in FIGURES},
        }
        reference = folder / "reference" / f"{index}.npy"
        if setting.is_reference:
            _save_frames(reference, frames)
        elif setting.is_base and reference.is_file():
            found["psnr_db"] = psnr_db(np.load(reference), frames)
        return found

    def judge_unnamed(_index: int, frames: U8) -> dict[str, Any]:
        return {"flicker": measure_consistency(frames).flicker}

    prompts = dict(enumerate(attributes.caption() for attributes in wanted))
    unnamed = {
        index: drop_background(wanted[index]) for index in range(0, len(wanted), UNNAMED_STRIDE)
    }
    found = _judge_clips(clips, setting, prompts, judge, folder / f"{setting.name}.json")
    name = f"{setting.name}-unnamed"
    others = _judge_clips(clips, setting, unnamed, judge_unnamed, folder / f"{name}.json")
    ratios = [clip["psnr_db"] for clip in found if "psnr_db" in clip]
    return {
        **score_readings(list(wanted), [ClipReading(**clip["reading"]) for clip in found]),
        **average_figures([clip["figures"] for clip in found]),
        "flicker_worst": _find_worst([clip["figures"]["flicker"] for clip in found]),
        "unnamed": {
            "clips": len(others),
            **average_figures(others),
            "flicker_worst": _find_worst([clip["flicker"] for clip in others]),
        },
        "median_psnr_db": statistics.median(ratios) if ratios else None,
        "minimum_psnr_db": min(ratios) if ratios else None,
    }


def drop_background(attributes: ClipAttributes) -> str:
    """Return the caption without the background, one of the forms that training saw."""
    return attributes.caption().removesuffix(f" on a {attributes.background} background")


def _judge_clips(
    clips: Generator,
    setting: Setting,
    prompts: dict[int, str],
    judge: Callable[[int, U8], dict[str, Any]],
    state: Path,
) -> list[dict[str, Any]]:
    """Return what `judge` says of the clip of each prompt, by its seed, unless it is kept already.

    Prompts of a shorter run may be there; those are the first.
    """
    found: list[dict[str, Any]] = json.loads(state.read_text()) if state.is_file() else []
    for count, (index, prompt) in enumerate(prompts.items(), start=1):
        if count <= len(found):
            continue
        found.append(judge(index, clips.generate(setting, prompt, index)))
        if count % _KEPT_EVERY == 0 or count == len(prompts):
            text = f"{state.stem}: {count} of {len(prompts)} prompts"
            print(text, file=sys.stderr, flush=True)
            with new_file(state) as temporary:
                temporary.write_text(json.dumps(found))
    return found[: len(prompts)]


def _save_frames(path: Path, frames: U8) -> None:
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, frames)


def _find_worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
