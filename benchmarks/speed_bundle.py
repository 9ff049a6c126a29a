"""The bundle that benchmarks.speed_table measures, and the ways in which it can make clips.

The bundle that ships has float32 graphs and a plan. The table also asks for int8 and for a plan of
each number of steps of the base model, so a copy gets them as anybody would: by `mutoscope
calibrate` and `mutoscope tune`. What these decline (int8 that is not faster, a plan that is too far
off) is no row of the table but a line below it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.main import EXIT_ERROR
from mutoscope.runtime.manifest import MANIFEST_NAME
from mutoscope.runtime.outputs import new_file
from mutoscope.runtime.row_plan import find_denoiser

ROOT: Final = Path(__file__).resolve().parent.parent
FEW_STEP: Final = ("few-step", (1, 2, 4))
BASE: Final = ("ddim", (8, 25))
VARIANTS: Final = ("float32", "int8")
REFERENCE_STEPS: Final = 25
PLAN_PSNR_DB: Final = 32
"""What plans are made for: above 30, since other prompts than those of the search may be lower."""
_ERROR: Final = "error: "
_STDERR: Final = 2
_MAIN: Final = "from mutoscope.runtime.main import main; main()"


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
        for count in (count for count in counts if _has_table(bundle, scheduler, count)):
            record = bundle.find_component(find_denoiser_of(bundle, scheduler, count))
            for variant in (variant for variant in VARIANTS if variant in record.variants):
                is_base = scheduler == BASE[0]
                settings.append(Setting(scheduler, count, variant, False, is_base))
                plan = find_plan(bundle, scheduler, count, variant)
                if plan is not None:
                    settings.append(Setting(plan, count, variant, True, is_base))
    return settings


def list_missing(bundle: Bundle) -> list[str]:
    """Return in words what the bundle cannot do of the table."""
    missing = []
    plain = {
        (setting.scheduler, setting.num_inference_steps, setting.variant)
        for setting in list_settings(bundle)
        if not setting.reuse
    }
    for scheduler, counts in (FEW_STEP, BASE):
        for count in counts:
            for variant in VARIANTS:
                way = f"{scheduler} with {count} steps in {variant}"
                if (scheduler, count, variant) not in plain:
                    missing.append(way)
                elif scheduler == BASE[0] and not find_plan(bundle, scheduler, count, variant):
                    missing.append(f"reuse of {way}")
    return missing


def find_plan(bundle: Bundle, scheduler: str, num_inference_steps: int, variant: str) -> str | None:
    """Return the plan for a schedule and a variant; None if the bundle has none.

    A plan that a denoiser was trained for serves all of its variants, and says nothing of one.
    """
    denoiser = find_denoiser_of(bundle, scheduler, num_inference_steps)
    for name, tables in bundle.manifest.schedules.items():
        if str(num_inference_steps) in tables:
            table = bundle.load_schedule(name, num_inference_steps)
            plan = table.provenance.get("plan", {})
            if (plan.get("scheduler"), plan.get("variant")) == (scheduler, variant):
                return name
            if not plan and table.mixes_denoisers and table.denoiser == denoiser:
                return name
    return None


def find_denoiser_of(bundle: Bundle, scheduler: str, num_inference_steps: int) -> str:
    """Return the denoiser that runs the rows of a schedule which name none."""
    return find_denoiser(bundle.manifest, bundle.load_schedule(scheduler, num_inference_steps))


def prepare_bundle(source: Bundle, folder: Path, num_threads: int) -> tuple[Bundle, list[str]]:
    """Return a copy with int8 graphs and plans, and what was declined.

    Args:
        source: What is copied.
        folder: Where the copy is made, and kept; what was done there already is not done again.
        num_threads: Of calibration and tuning.
    """
    path, log = folder / "bundle", folder / "prepared.json"
    if not path.is_dir():
        part = folder / "bundle.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source.path, part)
        part.rename(path)
    done: list[str] = json.loads(log.read_text()) if log.is_file() else []
    declined = []
    for arguments in list_preparations(source, num_threads):
        name = shlex.join(arguments)
        if name in done:
            continue
        reason = _run_mutoscope([arguments[0], str(path), *arguments[1:]])
        if reason:
            declined.append(f"`mutoscope {name}`: {reason.replace(str(path), 'the bundle')}")
            continue
        done.append(name)
        with new_file(log) as temporary:
            temporary.write_text(json.dumps(done, indent=1))
    return Bundle.open(path), declined


def list_preparations(bundle: Bundle, num_threads: int) -> Iterator[list[str]]:
    """Yield the commands that give a bundle the rest of the table, without its path."""
    threads = ["--num-threads", str(num_threads)]
    for is_first, (scheduler, counts) in zip((True, False), (FEW_STEP, BASE), strict=True):
        if _has_table(bundle, scheduler, counts[-1]):
            denoiser = find_denoiser_of(bundle, scheduler, counts[-1])
            # The decoder and the text encoder come with the first.
            only = [] if is_first else ["--components", denoiser]
            if "int8" not in bundle.find_component(denoiser).variants:
                schedule = ["--scheduler", scheduler, "--num-inference-steps", str(counts[-1])]
                yield ["calibrate", *schedule, *only, *threads]
    scheduler, counts = BASE
    for variant in VARIANTS:
        for count in (count for count in counts if _has_table(bundle, scheduler, count)):
            if find_plan(bundle, scheduler, count, variant) is None:
                name = f"{scheduler}-reuse" + ("" if variant == "float32" else f"-{variant}")
                schedule = ["--scheduler", scheduler, "--num-inference-steps", str(count)]
                how = ["--variant", variant, "--min-psnr-db", str(PLAN_PSNR_DB)]
                # Guidance runs as in the bundle that ships.
                yield ["tune", *schedule, *how, "--name", name, "--no-guidance-passes", *threads]


def digest_sources(bundle: Bundle, *code: str) -> str:
    """Return a digest of a bundle and of files and folders of code, by which results are kept."""
    digest = hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes())
    for name in code:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _has_table(bundle: Bundle, scheduler: str, num_inference_steps: int) -> bool:
    return str(num_inference_steps) in bundle.manifest.schedules.get(scheduler, {})


def _run_mutoscope(arguments: list[str]) -> str:
    """Run a command, show its progress and report, and return why it declined; empty if it did not.

    Raises:
        subprocess.CalledProcessError: It was interrupted, or failed in another way.
    """
    command, last = [sys.executable, "-c", _MAIN, *arguments], ""
    print(f"mutoscope {shlex.join(arguments)}", file=sys.stderr, flush=True)
    process = subprocess.Popen(command, stdout=_STDERR, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
    declined = process.returncode == EXIT_ERROR and last.startswith(_ERROR)
    if process.returncode and not declined:
        raise subprocess.CalledProcessError(process.returncode, command)
    return last.removeprefix(_ERROR) if declined else ""
