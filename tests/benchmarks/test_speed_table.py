import json
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import speed_table
from benchmarks.prompt_accuracy import list_prompts
from benchmarks.speed_table import (
    DIFFUSERS,
    Pipelines,
    Setting,
    describe,
    find_plan,
    list_settings,
    measure_quality,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import MAXIMUM_PSNR_DB
from tests.calibration.reusing_bundle import REUSE, make_reusing_bundle
from tests.runtime.reuse_bundle import add_schedule, make_rows
from training.clips import draw_clips

SECONDS = {"seconds_median": 2.0, "seconds_minimum": 1.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One with tables of 4 few steps, of 8 and 25 DDIM steps, and a plan for 25."""
    path = make_reusing_bundle(tmp_path_factory.mktemp("speed") / "bundle")
    add_schedule(path, "ddim", make_rows(*[None] * 25))
    plan = {"plan": {"scheduler": "ddim", "variant": "float32"}}
    add_schedule(path, "fast", make_rows(*[None, REUSE] * 12, None), provenance=plan)
    return Bundle.open(path)


class DrawnClips:
    """Draws what the prompts say, and counts."""

    def __init__(self, wanted):
        self.wanted, self.seeds = wanted, []

    def generate(self, setting, prompt, seed):
        self.seeds.append(seed)
        (attributes,) = [a for a in self.wanted if a.caption() == prompt]
        return draw_clips(np.random.default_rng(seed), [attributes])[0]


def test_settings_are_the_steps_of_the_table_with_the_plans_that_are_there(bundle):
    settings = list_settings(bundle)
    names = [(s.scheduler, s.num_inference_steps, s.reuse, s.is_base) for s in settings]
    assert names == [
        ("few-step", 4, False, False),
        ("ddim", 8, False, True),
        ("ddim", 25, False, True),
        ("fast", 25, True, True),
    ]
    assert {setting.variant for setting in settings} == {"float32"}
    assert [setting.is_reference for setting in settings] == [False, False, True, False]
    assert find_plan(bundle, "ddim", 25, "int8") is None
    assert find_plan(bundle, "ddim", 8, "float32") is None


def test_the_command_writes_a_row_for_each_setting_and_diffusers(
    bundle, tmp_path, monkeypatch, capsys
):
    seen, prompts = [], []

    def open_diffusers(_checkpoint, _num_threads):
        def generate(seed, steps, guidance_scale, frames, height, width, prompt):
            seen.append((seed, steps, guidance_scale, (frames, height, width)))
            prompts.append(prompt)
            with ExitStack() as stack:
                reference = next(s for s in list_settings(bundle) if s.is_reference)
                return Pipelines(bundle, 1, stack).generate(reference, prompt, seed)

        return generate

    monkeypatch.setattr(speed_table, "open_diffusers", open_diffusers)
    short = [SimpleNamespace(caption=lambda word=word: word) for word in ("red", "a", "a red")]
    monkeypatch.setattr(speed_table, "list_prompts", lambda _kind: short)
    output = tmp_path / "speed.json"
    arguments = ("--bundle", bundle.path, "--num-rounds", 2, "--accuracy-prompts", 0)
    arguments += ("--num-threads", 1, "--state-dir", tmp_path, "--output", output)
    assert speed_table.main([str(argument) for argument in arguments]) == 0
    defaults = bundle.manifest.defaults
    size = (defaults.num_frames, defaults.height, defaults.width)
    assert seen == [(seed, 25, speed_table.DEFAULT_GUIDANCE_SCALE, size) for seed in range(3)]
    assert len(set(prompts)) == 3  # or its encoding would be there already
    record = json.loads(output.read_text())
    diffusers, few_step, eight, whole, plan = record["rows"]
    assert diffusers["way"] == DIFFUSERS
    assert diffusers["median_psnr_db"] == MAXIMUM_PSNR_DB
    assert few_step["median_psnr_db"] is None is whole["median_psnr_db"]
    assert 0 < plan["median_psnr_db"] < MAXIMUM_PSNR_DB
    assert 0 < eight["median_psnr_db"] < MAXIMUM_PSNR_DB
    assert all(row["seconds_median"] >= row["seconds_minimum"] > 0 for row in record["rows"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(record["rows"])


def test_quality_goes_on_where_it_was_interrupted(tmp_path):
    wanted = list_prompts("held-out")[:12]
    clips, state = DrawnClips(wanted), tmp_path / "state.json"
    setting = Setting("ddim", 25, "float32", False, True)
    measure_quality(clips, setting, wanted[:8], state)
    result = measure_quality(clips, setting, wanted, state)
    assert clips.seeds == list(range(12))
    assert result["clips"] == 12
    assert result["all"] == 1.0
    assert result["flicker"] < 0.05  # nothing but the object changes in a drawn clip
    assert measure_quality(clips, setting, wanted, state) == result
    assert len(clips.seeds) == 12


def test_the_table_has_speeds_against_diffusers_and_the_default_in_bold():
    setting = {"scheduler": "few-step", "num_inference_steps": 4, "variant": "float32"}
    quality = {"colour": 0.95, "shape": 0.9, "motion": 1.0, "all": 0.85, "clips": 128}
    record = {
        "machine": {"machine": "here", "cores": 2, "python": "3"},
        "bundle": "shapes",
        "num_threads": 2,
        "num_rounds": 5,
        "guidance_scale": 2.0,
        "size": [16, 64, 64],
        "default": {"scheduler": "few-step", "steps": 4},
        "rows": [
            {"way": DIFFUSERS, "num_inference_steps": 25, "median_psnr_db": 80.0, **SECONDS},
            {
                **{"way": "mutoscope", "reuse": False, "is_base": False, "median_psnr_db": None},
                **{**setting, **quality, "seconds_median": 0.1},
                **{"flicker": 0.25, "warping_error": None},
            },
        ],
    }
    lines = list(describe(record))
    assert "128 prompts" in lines[2]
    assert lines[-2] == (
        "| diffusers, torch eager | 25 | float32 | - | 2.00 | 1.0 x | 80.0 dB | - | - | - | - | "
        "- | - |"
    )
    assert lines[-1] == (
        "| **few-step** | **4** | **float32** | **off** | **0.10** | **20.0 x** | **-** | "
        "**95.0%** | **90.0%** | **100.0%** | **85.0%** | **0.25** | **-** |"
    )
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
