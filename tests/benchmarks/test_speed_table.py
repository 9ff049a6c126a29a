import json
import subprocess
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import speed_bundle, speed_table
from benchmarks.prompt_accuracy import list_prompts
from benchmarks.speed_bundle import (
    Setting,
    digest_sources,
    find_plan,
    list_missing,
    list_preparations,
    list_settings,
    prepare_bundle,
)
from benchmarks.speed_quality import drop_background, measure_quality
from benchmarks.speed_table import DIFFUSERS, Pipelines, describe
from mutoscope.runtime import main
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import MAXIMUM_PSNR_DB
from tests.calibration.reusing_bundle import REUSE, make_reusing_bundle
from tests.runtime.reuse_bundle import add_schedule, make_rows
from training.clips import draw_clips

SECONDS = {"seconds_median": 2.0, "seconds": [1.5, 2.0, 4.0]}
FLOAT = "float32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One with tables of 4 few steps, of 8 and 25 DDIM steps, and a plan for 25."""
    path = make_reusing_bundle(tmp_path_factory.mktemp("speed") / "bundle")
    add_schedule(path, "ddim", make_rows(*[None] * 25))
    plan = {"plan": {"scheduler": "ddim", "variant": "float32"}}
    add_schedule(path, "fast", make_rows(*[None, REUSE] * 12, None), provenance=plan)
    return Bundle.open(path)


class DrawnClips:
    """Draws what the prompts say, counts, and lets clips without a background flicker."""

    def __init__(self, wanted):
        self.wanted, self.seeds, self.unnamed = wanted, [], []

    def generate(self, setting, prompt, seed):
        attributes = self.wanted[seed]
        frames = draw_clips(np.random.default_rng(seed), [attributes])[0]
        if prompt == attributes.caption():
            self.seeds.append(seed)
            return frames if setting.is_reference else np.maximum(frames, 1)
        assert prompt == drop_background(attributes)
        self.unnamed.append(seed)
        frames = np.clip(frames, 0, 240)
        frames[::2] += 2 + seed  # levels
        return frames


class Commands:
    """Stands for `mutoscope`: keeps what would be run, and declines some of it."""

    def __init__(self, monkeypatch, *declined):
        self.run, self.declined = [], declined
        monkeypatch.setattr(speed_bundle, "_run_mutoscope", self)

    def __call__(self, arguments):
        self.run.append(arguments)
        return f"{arguments[1]} is too far off" if {*self.declined} & {*arguments} else ""


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
    arguments += ("--num-threads", 1, "--state-dir", tmp_path, "--output", output, "--as-is")
    (tmp_path / "model_index.json").write_text("{}")
    arguments += ("--checkpoint", tmp_path)
    assert speed_table.main([str(argument) for argument in arguments]) == 0
    defaults = bundle.manifest.defaults
    size = (defaults.num_frames, defaults.height, defaults.width)
    assert seen == [(seed, 25, speed_table.DEFAULT_GUIDANCE_SCALE, size) for seed in range(3)]
    assert len(set(prompts)) == 3  # or its encoding would be there already
    record = json.loads(output.read_text())
    diffusers = record["rows"][0]
    assert diffusers["way"] == DIFFUSERS
    assert diffusers["median_psnr_db"] == MAXIMUM_PSNR_DB
    ways = [(row["scheduler"], row["num_inference_steps"]) for row in record["rows"][1:]]
    assert ways == [("few-step", 4), ("ddim", 8), ("ddim", 25), ("fast", 25)]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in record["rows"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(record["rows"])


def test_quality_goes_on_where_it_was_interrupted(tmp_path):
    wanted = list_prompts("held-out")[:12]
    clips = DrawnClips(wanted)
    setting = Setting("ddim", 25, FLOAT, False, True)
    measure_quality(clips, setting, wanted[:8], tmp_path)
    result = measure_quality(clips, setting, wanted, tmp_path)
    assert clips.seeds == list(range(12))
    assert clips.unnamed == [0, 4, 8]
    assert result["clips"] == 12
    assert result["all"] == 1.0
    assert result["flicker"] <= result["flicker_worst"] < 0.05  # only the object changes
    unnamed = result["unnamed"]
    assert unnamed["clips"] == 3
    assert unnamed["flicker"] == pytest.approx(2 + 4, abs=0.5)
    assert unnamed["flicker_worst"] == pytest.approx(2 + 8, abs=0.5)
    assert result["median_psnr_db"] is None
    assert measure_quality(clips, setting, wanted, tmp_path) == result
    assert len(clips.seeds) == 12


def test_clips_of_the_base_model_are_compared_with_those_of_the_reference(tmp_path):
    wanted = list_prompts("held-out")[:3]
    clips = DrawnClips(wanted)
    measure_quality(clips, Setting("ddim", 25, FLOAT, False, True), wanted, tmp_path)
    plan = measure_quality(clips, Setting("fast", 25, FLOAT, True, True), wanted, tmp_path)
    assert 40 < plan["minimum_psnr_db"] <= plan["median_psnr_db"] <= MAXIMUM_PSNR_DB
    few = measure_quality(clips, Setting("few-step", 4, FLOAT, False, False), wanted, tmp_path)
    assert few["median_psnr_db"] is None


def test_what_the_bundle_lacks_is_listed(bundle):
    assert list_missing(bundle) == [
        *("few-step with 1 steps in float32", "few-step with 1 steps in int8"),
        *("few-step with 2 steps in float32", "few-step with 2 steps in int8"),
        "few-step with 4 steps in int8",
        *("reuse of ddim with 8 steps in float32", "ddim with 8 steps in int8"),
        "ddim with 25 steps in int8",
    ]


def test_the_rest_of_the_table_is_made_with_commands_that_exist(bundle):
    commands = list(list_preparations(bundle, 2))
    assert [
        (command[0], *(word for word in command if word in ("8", "25", "4", FLOAT, "int8")))
        for command in commands
    ] == [
        *(("calibrate", "4"), ("calibrate", "25")),
        *(("tune", "8", FLOAT), ("tune", "8", "int8"), ("tune", "25", "int8")),
    ]
    assert "unet" in commands[1]
    for name, *arguments in commands:
        context = main.group.make_context("mutoscope", [], resilient_parsing=True)
        command = main.group.get_command(context, name)
        command.make_context(name, [str(bundle.path), *arguments], parent=context)


def test_a_bundle_is_prepared_once_and_what_was_declined_is_told(bundle, tmp_path, monkeypatch):
    commands = Commands(monkeypatch, "8")
    copy, declined = prepare_bundle(bundle, tmp_path, 1)
    assert copy.path == tmp_path / "bundle"
    assert copy.manifest == bundle.manifest
    assert [command[:2] for command in commands.run[:2]] == [["calibrate", str(copy.path)]] * 2
    assert len(commands.run) == 5
    assert len(declined) == 2
    assert declined[0].startswith("`mutoscope tune --scheduler ddim --num-inference-steps 8 ")
    assert declined[0].endswith("`: the bundle is too far off")
    assert prepare_bundle(bundle, tmp_path, 1)[1] == declined
    assert len(commands.run) == 7  # what was declined is tried again


def test_a_command_that_breaks_is_no_refusal(tmp_path):
    missing = str(tmp_path / "none")
    assert speed_bundle._run_mutoscope(["inspect", missing]).startswith(f"{missing} does not exist")
    assert speed_bundle._run_mutoscope(["--version"]) == ""
    with pytest.raises(subprocess.CalledProcessError):
        speed_bundle._run_mutoscope(["inspect", "--nonsense"])


def test_figures_are_kept_for_one_bundle_and_one_code(bundle, tmp_path):
    assert digest_sources(bundle, "benchmarks") == digest_sources(bundle, "benchmarks")
    others = {digest_sources(bundle), digest_sources(bundle, "benchmarks")}
    assert len({*others, digest_sources(Bundle.default())}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-rounds", "0"], "--num-rounds and --num-threads must be 1 or more"),
        (["--accuracy-prompts", "129"], "--accuracy-prompts must be from 0 to 128"),
        (["--checkpoint", "nowhere"], "nowhere is no checkpoint: name one with --checkpoint"),
        (["--output", "nowhere/speed.json"], "there is no folder nowhere: make it"),
    ],
)
def test_wrong_usage_is_told_before_any_work(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        speed_table.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


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
        "default": {"scheduler": "few-step", "steps": 4, "variant": FLOAT},
        "missing": ["reuse of ddim with 8 steps in int8"],
        "declined": ["`mutoscope tune`: no"],
        "rows": [
            {"way": DIFFUSERS, "num_inference_steps": 25, "median_psnr_db": 80.0, **SECONDS},
            {
                **{"way": "mutoscope", "reuse": False, "is_base": False, "median_psnr_db": None},
                **{**setting, **quality, "seconds_median": 0.1},
                **{"flicker": 0.25, "flicker_worst": 1.5, "warping_error": None},
                "unnamed": {"clips": 32, "flicker": 2.5, "flicker_worst": 15.0},
            },
        ],
    }
    *lines, _, missing, _, declined = describe(record)
    assert missing == "Not in this bundle: reuse of ddim with 8 steps in int8."
    assert declined == "`mutoscope tune`: no"
    assert "128 prompts" in lines[2]
    assert "32 of these prompts without their background" in lines[2]
    assert lines[-2] == (
        "| diffusers, torch eager | 25 | float32 | - | 2.00 | 1.0 x | 80.0 dB | - | - | - | - | "
        "- | - | - |"
    )
    assert lines[-1] == (
        "| **few-step** | **4** | **float32** | **off** | **0.10** | **20.0 x** | **-** | "
        "**95.0%** | **90.0%** | **100.0%** | **85.0%** | **0.25 (1.5)** | **2.50 (15.0)** | "
        "**-** |"
    )
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
