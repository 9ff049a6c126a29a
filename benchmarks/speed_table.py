"""How fast clips can be made, and what it costs: steps, int8 and reused features beside diffusers.

    python -m benchmarks.speed_table
    python -m benchmarks.document

A copy of the bundle that ships gets int8 graphs and plans (benchmarks/speed_bundle.py). Then every
setting makes one clip in each round, diffusers in torch eager too, so that a busy machine is busy
for all of them. Last, each makes clips of prompts that training never saw, which are read back
(benchmarks/speed_quality.py). The copy and what was found of the clips are kept in a folder for
this bundle and this code, so that an interrupted run goes on; the timing is made anew. Figures go
to benchmarks/results/speed.json, from where docs/speed.md has its table.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.against_diffusers import U8, open_diffusers
from benchmarks.prompt_accuracy import DEFAULT_GUIDANCE_SCALE, list_prompts
from benchmarks.speed_bundle import (
    REFERENCE_STEPS,
    ROOT,
    Setting,
    digest_sources,
    find_denoiser_of,
    list_missing,
    list_settings,
    prepare_bundle,
)
from benchmarks.speed_quality import measure_quality
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.outputs import new_file
from mutoscope.runtime.pipeline import VideoPipeline

RESULT: Final = Path(__file__).resolve().parent / "results" / "speed.json"
DEFAULT_CHECKPOINT: Final = ROOT / "checkpoints" / "moving-shapes"
DEFAULT_STATE_DIR: Final = Path("~/.cache/mutoscope-speed")
DIFFUSERS: Final = "diffusers"
NUM_ROUNDS: Final = 5
NUM_PROMPTS: Final = 128
CODE: Final = ("benchmarks", "engines", "runtime", "training/clips.py")
"""What the figures of clips come from, beside the bundle."""
SCORES: Final = ("colour", "shape", "motion", "all")


class Pipelines:
    """One pipeline for each setting: what one has of a prompt already does not help the next."""

    def __init__(self, bundle: Bundle, num_threads: int, stack: ExitStack) -> None:
        """Use a bundle; the stack closes what is opened."""
        self._bundle, self._num_threads, self._stack = bundle, num_threads, stack
        self._opened: dict[str, VideoPipeline] = {}

    def generate(self, setting: Setting, prompt: str, seed: int) -> U8:
        """Return the frames of a clip."""
        if setting.name not in self._opened:
            pipeline = VideoPipeline(
                self._bundle, variant=setting.variant, num_threads=self._num_threads
            )
            self._opened[setting.name] = self._stack.enter_context(pipeline)
        return (
            self._opened[setting.name]
            .generate(
                prompt,
                seed=seed,
                scheduler=setting.scheduler,
                num_inference_steps=setting.num_inference_steps,
                guidance_scale=DEFAULT_GUIDANCE_SCALE if setting.is_base else None,
            )
            .frames
        )


def measure_speed(
    pipelines: Pipelines,
    settings: list[Setting],
    diffusers: Callable[[str, int], U8],
    num_rounds: int,
) -> dict[str, dict[str, Any]]:
    """Return seconds by the name of the setting, and of diffusers, all in turn.

    Diffusers also has a PSNR against the reference, if that is among the settings: it shows that
    both make the same clip.

    Args:
        pipelines: What makes the clips.
        settings: The settings.
        diffusers: Returns the frames of a prompt and a seed.
        num_rounds: Rounds that count, after one that warms up.
    """
    reference = next((setting for setting in settings if setting.is_reference), None)
    seconds: dict[str, list[float]] = {
        name: [] for name in (DIFFUSERS, *(s.name for s in settings))
    }
    ratios = []
    # Another prompt each time, so that none is encoded already.
    prompts = [attributes.caption() for attributes in list_prompts("training")]
    for seed in range(num_rounds + 1):
        prompt = prompts[seed % len(prompts)]
        makers: dict[str, Callable[[], U8]] = {
            DIFFUSERS: functools.partial(diffusers, prompt, seed)
        }
        for setting in settings:
            makers[setting.name] = functools.partial(pipelines.generate, setting, prompt, seed)
        frames = {}
        for name, make in makers.items():
            _say(f"round {seed} of {num_rounds}: {name}")
            started = time.perf_counter()
            frames[name] = make()
            if seed:
                seconds[name].append(time.perf_counter() - started)
        if seed and reference is not None:
            ratios.append(psnr_db(frames[reference.name], frames[DIFFUSERS]))
    speed: dict[str, dict[str, Any]] = {
        name: {"seconds_median": statistics.median(spent), "seconds": spent}
        for name, spent in seconds.items()
    }
    speed[DIFFUSERS]["median_psnr_db"] = statistics.median(ratios) if ratios else None
    return speed


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and write its figures."""
    options = _parse(arguments)
    bundle = Bundle.default() if options.bundle is None else Bundle.open(options.bundle)
    state, declined = options.state_dir.expanduser(), list[str]()
    if not options.as_is:
        folder = state / digest_sources(bundle, "calibration")
        folder.mkdir(parents=True, exist_ok=True)
        bundle, declined = prepare_bundle(bundle, folder, options.num_threads)
    settings = list_settings(bundle)
    wanted = list_prompts("held-out")
    wanted = wanted[:: max(1, len(wanted) // max(1, options.accuracy_prompts))]
    wanted = wanted[: options.accuracy_prompts]
    folder = state / f"{digest_sources(bundle, *CODE)}-{len(wanted)}"
    folder.mkdir(parents=True, exist_ok=True)
    generate = open_diffusers(options.checkpoint, options.num_threads)
    size = _find_size(bundle)
    with ExitStack() as stack:
        pipelines = Pipelines(bundle, options.num_threads, stack)
        speed = measure_speed(
            pipelines,
            settings,
            lambda prompt, seed: generate(
                seed, REFERENCE_STEPS, DEFAULT_GUIDANCE_SCALE, *size, prompt
            ),
            options.num_rounds,
        )
        quality: dict[str, dict[str, Any]] = {}
        if wanted:
            # The reference first: the PSNR of the others is against its clips.
            for setting in sorted(settings, key=lambda setting: not setting.is_reference):
                quality[setting.name] = measure_quality(pipelines, setting, wanted, folder)
    rows = [{"way": DIFFUSERS, "num_inference_steps": REFERENCE_STEPS, **speed[DIFFUSERS]}]
    for setting in settings:
        found = {**speed[setting.name], **quality.get(setting.name, {})}
        rows.append({"way": "mutoscope", **asdict(setting), **found})
    record = {
        **_describe_run(bundle, options),
        "missing": list_missing(bundle),
        "declined": declined,
        "rows": rows,
    }
    with new_file(options.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(describe(record)))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed_table")
    parser.add_argument("--bundle", type=Path, help="default: the bundle that ships")
    parser.add_argument(
        "--as-is", action="store_true", help="measure the bundle without more int8 and plans"
    )
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--num-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--num-rounds", type=int, default=NUM_ROUNDS, help="of the timing")
    parser.add_argument(
        "--accuracy-prompts", type=int, default=NUM_PROMPTS, metavar="N", help="0 for speed alone"
    )
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    if min(options.num_rounds, options.num_threads) < 1:
        parser.error("--num-rounds and --num-threads must be 1 or more")
    if not 0 <= options.accuracy_prompts <= NUM_PROMPTS:
        parser.error(f"--accuracy-prompts must be from 0 to {NUM_PROMPTS}")
    if not (options.checkpoint / "model_index.json").is_file():
        parser.error(f"{options.checkpoint} is no checkpoint: name one with --checkpoint")
    if not options.output.parent.is_dir():
        parser.error(f"there is no folder {options.output.parent}: make it")
    return options


def _find_size(bundle: Bundle) -> tuple[int, int, int]:
    defaults = bundle.manifest.defaults
    return defaults.num_frames, defaults.height, defaults.width


def _describe_run(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where and how."""
    defaults = bundle.manifest.defaults
    denoiser = find_denoiser_of(bundle, defaults.scheduler, defaults.num_inference_steps)
    return {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "num_threads": options.num_threads,
        "num_rounds": options.num_rounds,
        "guidance_scale": DEFAULT_GUIDANCE_SCALE,
        "size": _find_size(bundle),
        "default": {
            "scheduler": defaults.scheduler,
            "steps": defaults.num_inference_steps,
            "variant": bundle.find_component(denoiser).default_variant,
        },
    }


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table in Markdown."""
    frames, height, width = record["size"]
    clips = next((row["clips"] for row in record["rows"] if "clips" in row), 0)
    unnamed = next((row["unnamed"]["clips"] for row in record["rows"] if "unnamed" in row), 0)
    base = record["rows"][0]["seconds_median"]
    yield format_machine(record["machine"])
    yield ""
    yield (
        f"{record['bundle']}: clips of {frames} frames of {height} x {width}, "
        f"{record['num_threads']} threads, guidance {record['guidance_scale']:g} in the base "
        f"model. Seconds from the prompt to the frames, median of {record['num_rounds']} rounds in "
        "which all take turns; speed is against diffusers. PSNR against the base model with "
        f"{REFERENCE_STEPS} steps in float32, same prompts and seeds, median (that of diffusers "
        "over the timed clips). "
        f"All else is over {clips} prompts that training never saw; in brackets is the worst clip. "
        f"*No background named*: {unnamed} of these prompts without their background. The default "
        "setting is in bold."
    )
    yield ""
    yield (
        "| model | steps | type | reuse | s per clip | speed | PSNR | "
        f"{' | '.join(SCORES)} | flicker | flicker, no background named | warping error |"
    )
    yield f"| --- | ---: | --- | --- | {'---: | ' * (6 + len(SCORES))}".rstrip()
    for row in record["rows"]:
        yield _format_row(row, base, record["default"])
    if record["missing"]:
        yield ""
        yield f"Not in this bundle: {'; '.join(record['missing'])}."
    for reason in record["declined"]:
        yield ""
        yield reason


def _format_row(row: dict[str, Any], base: float, default: dict[str, Any]) -> str:
    is_ours = row["way"] != DIFFUSERS
    model = "base" if not is_ours or row["is_base"] else "few-step"
    named = (row.get("scheduler"), row["num_inference_steps"], row.get("variant"))
    is_default = named == (default["scheduler"], default["steps"], default["variant"])
    reuse = ("on" if row["reuse"] else "off") if is_ours else "-"
    cells = [
        model if is_ours else "diffusers, torch eager",
        str(row["num_inference_steps"]),
        row.get("variant", "float32"),
        reuse,
        f"{row['seconds_median']:.2f}",
        f"{base / row['seconds_median']:.1f} x",
        _format(row.get("median_psnr_db"), "{:.1f} dB"),
        *(_format(row.get(name), "{:.1%}") for name in SCORES),
        _format_flicker(row),
        _format_flicker(row.get("unnamed", {})),
        _format(row.get("warping_error"), "{:.3g}"),
    ]
    return f"| {' | '.join(f'**{cell}**' if is_default else cell for cell in cells)} |"


def _format_flicker(figures: dict[str, Any]) -> str:
    mean, worst = figures.get("flicker"), figures.get("flicker_worst")
    return "-" if mean is None else f"{mean:.2f} ({worst:.1f})"


def _format(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
