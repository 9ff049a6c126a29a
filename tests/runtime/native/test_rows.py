"""Rows that name a denoiser, reuse features or leave guidance out give the same video in C."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.errors import BundleError, MutoscopeError, ParameterError, ScheduleError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import write_manifest
from tests.runtime.native.native_bundles import read_manifest
from tests.runtime.native.parity import check_parity, generate_with_both
from tests.runtime.native.same_errors import check_same
from tests.runtime.reuse_bundle import add_schedule, make_rows

PROMPT = "a red circle"


@pytest.mark.parametrize("scheduler", ["reuse", "interval", "mixed", "few-step"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"guidance_scale": 1.0}, id="no-guidance"),
        pytest.param({"guidance_passes": "batched"}, id="batched"),
        pytest.param({"options": {"memory": "low"}}, id="low-memory"),
        pytest.param({"num_frames": 40, "context_length": 16}, id="windows"),
        pytest.param(
            {"num_frames": 40, "context_length": 16, "guidance_passes": "batched"},
            id="batched-windows",
        ),
    ],
)
def test_rows_give_the_same_video(
    library: Library, rows_bundle: Path, scheduler: str, changes: dict[str, Any]
) -> None:
    pair = generate_with_both(
        library, rows_bundle, prompt=PROMPT, seed=5, scheduler=scheduler, **changes
    )
    check_parity(pair)


def test_a_denoiser_without_guidance_needs_no_batch(
    library: Library, own_rows_bundle: Path
) -> None:
    def fix_batch(manifest: dict[str, Any]) -> None:
        inputs = manifest["components"]["unet_few_step"]["inputs"]
        inputs["encoder_hidden_states"]["shape"][0] = 1

    change_manifest(own_rows_bundle, fix_batch)
    pair = generate_with_both(
        library,
        own_rows_bundle,
        prompt=PROMPT,
        seed=5,
        scheduler="mixed",
        guidance_passes="batched",
    )
    check_parity(pair)


def test_reuse_makes_another_video_than_the_whole_denoiser(
    library: Library, rows_bundle: Path
) -> None:
    with NativePipeline.open(rows_bundle, library=library) as pipeline:
        frames = [
            pipeline.generate(PROMPT, seed=5, scheduler=scheduler).frames
            for scheduler in ("interval", "mixed", "reuse", "few-step")
        ]
    assert len({array.tobytes() for array in frames}) == len(frames)


def test_the_bundle_says_how_the_passes_run(library: Library, own_rows_bundle: Path) -> None:
    change_manifest(own_rows_bundle, lambda m: m["defaults"].update(guidance_passes="batched"))
    with NativePipeline.open(own_rows_bundle, library=library) as pipeline:
        assert pipeline.resolve(PROMPT, scheduler="reuse")["num_denoiser_runs"] == 5
        separate = pipeline.resolve(PROMPT, scheduler="reuse", guidance_passes="separate")
        assert separate["num_denoiser_runs"] == 10
    check_parity(generate_with_both(library, own_rows_bundle, prompt=PROMPT, seed=5))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ("ddim", 4)),
        ({"num_inference_steps": 5}, ("reuse", 5)),
        ({"scheduler": "reuse"}, ("reuse", 5)),
        ({"scheduler": "few-step"}, ("few-step", 4)),
        ({"scheduler": "Interval"}, ("interval", 4)),
        ({"num_inference_steps": 1}, ("ddim", 1)),
        ({"scheduler": "few-step", "num_inference_steps": 2}, ("few-step", 2)),
    ],
)
def test_the_schedule_is_chosen_as_in_python(
    library: Library, rows_bundle: Path, arguments: dict[str, Any], expected: tuple[str, int]
) -> None:
    with (
        NativePipeline.open(rows_bundle, library=library) as native,
        VideoPipeline.open(rows_bundle) as python,
    ):
        found = native.resolve(PROMPT, **arguments)
        settings = python.generate(PROMPT, **arguments).settings
    assert (found["scheduler"], found["num_inference_steps"]) == expected
    assert (settings.scheduler, settings.num_inference_steps) == expected


@pytest.mark.parametrize(
    ("default", "scheduler", "expected"),
    [
        (("few-step", 4), "ddim", 8),
        (("few-step", 4), "few-step", 4),
        (("few-step", 4), "few-step-reuse", 4),
        (("ddim", 4), "few-step-reuse", 12),
        (("ddim", 4), "named", 4),
        (("named", 4), "ddim", 4),
        (("few-step", 2), "ddim", 8),
        (("long", 30), "longer", 30),
        (("long", 40), "longer", 40),
        # The default scheduler has no such table: the first that has makes the clips.
        (("ddim", 12), "few-step-reuse", 12),
        (("few-step", 8), "few-step", 4),
    ],
)
def test_the_steps_of_a_scheduler_are_chosen_as_in_python(
    library: Library,
    defaults_bundle: Path,
    default: tuple[str, int],
    scheduler: str,
    expected: int,
) -> None:
    set_default(defaults_bundle, *default)
    arguments: dict[str, Any] = {"prompt": PROMPT, "scheduler": scheduler, "num_frames": 1}
    with NativePipeline.open(defaults_bundle, library=library) as native:
        found = native.resolve(**arguments)
    assert found["num_inference_steps"] == expected
    pair = generate_with_both(library, defaults_bundle, seed=3, **arguments)
    assert pair.python.settings.num_inference_steps == expected
    check_parity(pair)


@pytest.mark.parametrize("damaged", ["ddim", "few-step"])
def test_a_damaged_table_that_the_choice_depends_on_is_refused_as_in_python(
    library: Library, defaults_bundle: Path, damaged: str
) -> None:
    set_default(defaults_bundle, "few-step", 4)
    table = defaults_bundle / "schedules" / f"{damaged}_4.json"
    table.write_bytes(table.read_bytes()[::-1])
    with (
        NativePipeline.open(defaults_bundle, library=library) as native,
        VideoPipeline.open(defaults_bundle) as python,
    ):
        check_same(
            lambda: native.generate(PROMPT, scheduler="ddim"),
            lambda: python.generate(PROMPT, scheduler="ddim"),
            BundleError,
        )
        # It is not read where the choice does not depend on what is in it.
        for arguments in (
            {"scheduler": "ddim", "num_inference_steps": 3},
            {"scheduler": "euler-ancestral"},
        ):
            native.generate(PROMPT, **arguments)
            python.generate(PROMPT, **arguments)


@pytest.mark.parametrize(
    ("arguments", "rows", "guided", "windows", "runs"),
    [
        ({"scheduler": "reuse"}, 5, 5, 1, 10),
        ({"scheduler": "interval"}, 4, 2, 1, 6),
        ({"scheduler": "interval", "guidance_scale": 1.0}, 4, 0, 1, 4),
        ({"scheduler": "interval", "guidance_passes": "batched"}, 4, 2, 1, 4),
        ({"scheduler": "few-step"}, 4, 0, 1, 4),
        ({"scheduler": "mixed", "num_frames": 40, "context_length": 16}, 4, 2, 4, 24),
    ],
)
def test_resolve_says_how_often_denoisers_run(
    library: Library,
    rows_bundle: Path,
    arguments: dict[str, Any],
    rows: int,
    guided: int,
    windows: int,
    runs: int,
) -> None:
    with NativePipeline.open(rows_bundle, library=library) as pipeline:
        found = pipeline.resolve(PROMPT, **arguments)
    assert (found["num_rows"], found["num_guided_rows"]) == (rows, guided)
    assert (found["num_context_windows"], found["num_denoiser_runs"]) == (windows, runs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 3.0},
        {"min_guidance_scale": 2.0},
        {"negative_prompt": "a star"},
        {"num_inference_steps": 3},
    ],
)
def test_what_a_few_step_schedule_refuses_is_refused_as_in_python(
    library: Library, rows_bundle: Path, arguments: dict[str, Any]
) -> None:
    with (
        NativePipeline.open(rows_bundle, library=library) as native,
        VideoPipeline.open(rows_bundle) as python,
    ):
        given: dict[str, Any] = {"scheduler": "few-step", **arguments}
        check_same(
            lambda: native.generate(PROMPT, **given),
            lambda: python.generate(PROMPT, **given),
            ParameterError,
        )


# ---- tables that do not fit the bundle

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def own_rows_bundle(rows_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(rows_bundle, tmp_path / "own-bundle"))


@pytest.fixture
def defaults_bundle(own_rows_bundle: Path) -> Path:
    """With schedules that have more tables, of several denoisers, than the default steps."""
    denoisers = {"few-step-reuse": "unet_few_step", "named": "unet"}
    for scheduler, denoiser in denoisers.items():
        for steps in (4, 12):
            add_schedule(own_rows_bundle, scheduler, make_rows(*[None] * steps), denoiser=denoiser)
    for scheduler in ("long", "longer"):
        for steps in (20, 30, 40):
            add_schedule(own_rows_bundle, scheduler, make_rows(*[None] * steps))
    return own_rows_bundle


def set_default(path: Path, scheduler: str, num_inference_steps: int) -> None:
    defaults = {"scheduler": scheduler, "num_inference_steps": num_inference_steps}
    change_manifest(path, lambda manifest: manifest["defaults"].update(defaults))


def change_manifest(path: Path, change: Change) -> None:
    manifest = read_manifest(path)
    change(manifest)
    write_manifest(path, manifest)


def set_row(index: int, **fields: object) -> Change:
    return lambda table: table["rows"][index].update(fields)


BAD_TABLES: dict[str, tuple[Change, type[MutoscopeError]]] = {
    "reuse row first": (set_row(0, denoiser="unet_reuse"), ScheduleError),
    "maker without guidance": (set_row(0, guidance=False), ScheduleError),
    "unknown denoiser": (set_row(1, denoiser="unet_fast"), ScheduleError),
    "no denoiser": (set_row(1, denoiser="vae_decoder"), ScheduleError),
    "denoiser a number": (set_row(1, denoiser=3), ScheduleError),
    "guidance a text": (set_row(1, guidance="no"), ScheduleError),
    "guidance null": (set_row(1, guidance=None), ScheduleError),
    "table's denoiser": (lambda table: table.update(denoiser="unet_none"), ScheduleError),
    "table's denoiser a list": (lambda table: table.update(denoiser=[]), ScheduleError),
    "another graph": (lambda table: table.update(graph_sha256="0" * 64), ScheduleError),
    "digest a number": (lambda table: table.update(graph_sha256=7), ScheduleError),
}


@pytest.mark.parametrize("kind", list(BAD_TABLES))
def test_a_table_that_does_not_fit_is_refused_as_in_python(
    library: Library, own_rows_bundle: Path, kind: str
) -> None:
    change, error = BAD_TABLES[kind]
    path = own_rows_bundle / "schedules" / "reuse_5.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    change_manifest(own_rows_bundle, lambda _manifest: None)
    with (
        NativePipeline.open(own_rows_bundle, library=library) as native,
        VideoPipeline.open(own_rows_bundle) as python,
    ):
        check_same(
            lambda: native.generate(PROMPT, scheduler="reuse"),
            lambda: python.generate(PROMPT, scheduler="reuse"),
            error,
        )
        # Nothing was loaded or run for it, and other schedules work.
        native.generate(PROMPT, scheduler="ddim")


@pytest.mark.parametrize("weights_of", ["unet_none", "unet_reuse", "unet_few_step"])
def test_weights_that_are_nowhere_are_refused_as_in_python(
    library: Library, own_rows_bundle: Path, weights_of: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet_reuse"]["weights_of"] = weights_of
        few_step = {"int8": "unet_few_step/model.onnx"}
        manifest["components"]["unet_few_step"] |= {"variants": few_step, "default_variant": "int8"}

    change_manifest(own_rows_bundle, change)
    check_same(
        lambda: NativePipeline.open(own_rows_bundle, library=library),
        lambda: VideoPipeline.open(own_rows_bundle),
        BundleError,
    )
