"""How fast clips can be made, and what it costs: steps, int8 and reused features beside diffusers.

    python -m benchmarks.speed_table
    python -m benchmarks.document

Every setting makes one clip in each round, diffusers in torch eager too, so that a busy machine is
busy for all of them. Then each makes clips of prompts that training never saw, which are read back;
those are kept in a folder, so that an interrupted run goes on. Figures go to
benchmarks/results/speed.json, from where docs/speed.md has its table.

Plans are found by what their tables say of themselves (`mutoscope tune`): one for each number of
steps of the base model, and each variant.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.against_diffusers import U8, open_diffusers
from benchmarks.clip_reader import ClipReading, read_clip
from benchmarks.prompt_accuracy import DEFAULT_GUIDANCE_SCALE, list_prompts, score_readings
from mutoscope.runtime.benchmarks.machine import describe_machine, format_machine
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.evaluation.consistency import average_figures, measure_consistency
from mutoscope.runtime.manifest import MANIFEST_NAME
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.outputs import new_file
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.row_plan import find_first_denoiser
from training.clips import ClipAttributes

RESULT: Final = Path(__file__).resolve().parent / "results" / "speed.json"
DEFAULT_CHECKPOINT: Final = Path("checkpoints/moving-shapes")
DEFAULT_STATE_DIR: Final = Path("~/.cache/mutoscope-speed")
FEW_STEP: Final = ("few-step", (1, 2, 4))
BASE: Final = ("ddim", (8, 25))
VARIANTS: Final = ("float32", "int8")
REFERENCE_STEPS: Final = 25
DIFFUSERS: Final = "diffusers"
NUM_ROUNDS: Final = 5
NUM_PROMPTS: Final = 128
SCORES: Final = ("colour", "shape", "motion", "all")
FIGURES: Final = ("flicker", "warping_error")


@dataclass(frozen=True)
class Setting:
    """One way to make clips.

    Attributes:
        scheduler: In the bundle.
        num_inference_steps: Of it.
        variant: What the graphs compute in.
        reuse: Whether the scheduler is a plan, with reused features and rows without guidance.
        is_base: Whether it runs the base model, whose clips can be compared with each other.
    """

    scheduler: str
    num_inference_steps: int
    variant: str
    reuse: bool
    is_base: bool

    @property
    def name(self) -> str:
        """What files and progress call it."""
        return f"{self.scheduler}-{self.num_inference_steps}-{self.variant}"

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with its clips."""
        is_whole = self.is_base and not self.reuse
        return is_whole and (self.num_inference_steps, self.variant) == (REFERENCE_STEPS, "float32")


def list_settings(bundle: Bundle) -> list[Setting]:
    """Return what the bundle can do of the table, in its order."""
    settings = []
    for scheduler, counts in (FEW_STEP, BASE):
        tables = bundle.manifest.schedules.get(scheduler, {})
        for count in (count for count in counts if str(count) in tables):
            denoiser = bundle.load_schedule(scheduler, count).denoiser
            record = bundle.find_component(denoiser or find_first_denoiser(bundle.manifest))
            for variant in (variant for variant in VARIANTS if variant in record.variants):
                is_base = scheduler == BASE[0]
                settings.append(Setting(scheduler, count, variant, False, is_base))
                plan = find_plan(bundle, scheduler, count, variant)
                if plan is not None:
                    settings.append(Setting(plan, count, variant, True, is_base))
    return settings


def find_plan(bundle: Bundle, scheduler: str, num_inference_steps: int, variant: str) -> str | None:
    """Return the plan for a schedule and a variant; None if the bundle has none."""
    for name, tables in bundle.manifest.schedules.items():
        if str(num_inference_steps) in tables:
            table = bundle.load_schedule(name, num_inference_steps)
            plan = table.provenance.get("plan", {})
            if (plan.get("scheduler"), plan.get("variant")) == (scheduler, variant):
                return name
    return None


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
    """Return seconds and PSNR by the name of the setting, and of diffusers, all in turn.

    Args:
        pipelines: What makes the clips.
        settings: The settings; the reference, if it is there, is what the PSNR is against.
        diffusers: Returns the frames of a prompt and a seed.
        num_rounds: Rounds that count, after one that warms up.
    """
    reference = next((setting for setting in settings if setting.is_reference), None)
    compared = [DIFFUSERS, *(s.name for s in settings if s.is_base and not s.is_reference)]
    seconds: dict[str, list[float]] = {
        name: [] for name in (DIFFUSERS, *(s.name for s in settings))
    }
    ratios: dict[str, list[float]] = {name: [] for name in compared}
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
            for name, values in ratios.items():
                values.append(psnr_db(frames[reference.name], frames[name]))
    return {
        name: {
            "seconds_median": statistics.median(spent),
            "seconds_minimum": min(spent),
            "median_psnr_db": statistics.median(ratios[name]) if ratios.get(name) else None,
        }
        for name, spent in seconds.items()
    }


def measure_quality(
    pipelines: Pipelines, setting: Setting, wanted: list[ClipAttributes], state: Path
) -> dict[str, Any]:
    """Return how well clips follow their prompts and how steady they are.

    Args:
        pipelines: What makes the clips.
        setting: How.
        wanted: What each clip is asked to show.
        state: A file where what was found is kept after every few clips, and found again.
    """
    found: list[dict[str, Any]] = json.loads(state.read_text()) if state.is_file() else []
    for index in range(len(found), len(wanted)):
        frames = pipelines.generate(setting, wanted[index].caption(), index)
        figures = measure_consistency(frames).list_figures()
        found.append({"reading": asdict(read_clip(frames)), "figures": figures})
        if index % 8 == 7 or index + 1 == len(wanted):
            _say(f"{setting.name}: {index + 1} of {len(wanted)} prompts")
            with new_file(state) as temporary:
                temporary.write_text(json.dumps(found))
    clips = found[: len(wanted)]
    readings = [ClipReading(**clip["reading"]) for clip in clips]
    return {
        **score_readings(wanted, readings),
        **average_figures([clip["figures"] for clip in clips]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed_table")
    parser.add_argument("--bundle", type=Path, help="default: the bundle that ships")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--num-threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--num-rounds", type=int, default=NUM_ROUNDS, help="of the timing")
    parser.add_argument("--accuracy-prompts", type=int, default=NUM_PROMPTS, metavar="N")
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    bundle = Bundle.default() if options.bundle is None else Bundle.open(options.bundle)
    settings, defaults = list_settings(bundle), bundle.manifest.defaults
    size = (defaults.num_frames, defaults.height, defaults.width)
    generate = open_diffusers(options.checkpoint, options.num_threads)
    wanted = list_prompts("held-out")
    wanted = wanted[:: max(1, len(wanted) // max(1, options.accuracy_prompts))]
    wanted = wanted[: options.accuracy_prompts]
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
        folder = _make_state_folder(options.state_dir.expanduser(), bundle, len(wanted))
        rows = [{"way": DIFFUSERS, "num_inference_steps": REFERENCE_STEPS, **speed[DIFFUSERS]}]
        for setting in settings:
            quality = {}
            if wanted:
                quality = measure_quality(
                    pipelines, setting, wanted, folder / f"{setting.name}.json"
                )
            rows.append({"way": "mutoscope", **asdict(setting), **speed[setting.name], **quality})
    record = {
        "machine": describe_machine(),
        "bundle": bundle.manifest.name,
        "num_threads": options.num_threads,
        "num_rounds": options.num_rounds,
        "guidance_scale": DEFAULT_GUIDANCE_SCALE,
        "size": size,
        "default": {"scheduler": defaults.scheduler, "steps": defaults.num_inference_steps},
        "rows": rows,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(describe(record)))
    return 0


def describe(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table in Markdown."""
    frames, height, width = record["size"]
    clips = next((row["clips"] for row in record["rows"] if "clips" in row), 0)
    base = record["rows"][0]["seconds_median"]
    yield format_machine(record["machine"])
    yield ""
    yield (
        f"{record['bundle']}: clips of {frames} frames of {height} x {width}, "
        f"{record['num_threads']} threads, guidance {record['guidance_scale']:g} in the base "
        f"model. Seconds from the prompt to the frames, median of {record['num_rounds']} rounds in "
        "which all take turns. PSNR against the base model with 25 steps in float32, same prompt "
        f"and seed. Prompts, flicker and warping error over {clips} prompts that training never "
        "saw. The default setting is in bold."
    )
    yield ""
    yield (
        "| model | steps | type | reuse | s per clip | speed | PSNR | "
        f"{' | '.join(SCORES)} | flicker | warping error |"
    )
    yield f"| --- | ---: | --- | --- | {'---: | ' * (5 + len(SCORES))}"
    for row in record["rows"]:
        yield _format_row(row, base, record["default"])


def _format_row(row: dict[str, Any], base: float, default: dict[str, Any]) -> str:
    is_ours = row["way"] != DIFFUSERS
    model = "base" if not is_ours or row["is_base"] else "few-step"
    named = (row.get("scheduler"), row["num_inference_steps"], row.get("variant"))
    is_default = named == (default["scheduler"], default["steps"], "float32")
    reuse = ("on" if row["reuse"] else "off") if is_ours else "-"
    psnr = row["median_psnr_db"]
    cells = [
        model if is_ours else "diffusers, torch eager",
        str(row["num_inference_steps"]),
        row.get("variant", "float32"),
        reuse,
        f"{row['seconds_median']:.2f}",
        f"{base / row['seconds_median']:.1f} x",
        "-" if psnr is None else f"{psnr:.1f} dB",
        *(f"{row[name]:.1%}" if name in row else "-" for name in SCORES),
        *("-" if row.get(name) is None else f"{row[name]:.3g}" for name in FIGURES),
    ]
    return f"| {' | '.join(f'**{cell}**' if is_default else cell for cell in cells)} |"


def _make_state_folder(folder: Path, bundle: Bundle, num_prompts: int) -> Path:
    """Where what was found of this very bundle and so many prompts is kept."""
    digest = hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest()[:16]
    folder = folder / f"{digest}-{num_prompts}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
