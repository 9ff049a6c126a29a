import json

import numpy as np
import pytest

from benchmarks import prompt_accuracy
from benchmarks.prompt_accuracy import list_prompts, main, measure_accuracy
from training.clips import (
    PILLAR_MOTIONS,
    draw_clips,
    list_held_out_attributes,
    list_training_attributes,
)

# Drawn clips change nowhere but at the object, and it has one colour.
MAX_STILL_FLICKER = 0.05
MAX_COLOUR_DRIFT = 0.5


def draw_instead(wanted):
    """Return a route that draws the clips of `wanted`, whatever the prompts say."""

    def generate(prompts, seeds):
        assert len(prompts) == len(seeds) == len(wanted)
        yield from draw_clips(np.random.default_rng(seeds[0]), wanted)

    return generate


def test_prompts_are_held_out_unless_training_ones_are_asked_for():
    assert list_prompts("held-out") == list(list_held_out_attributes())
    assert set(list_prompts("training")) <= set(list_training_attributes())
    pillars = list_prompts("pillar")
    assert len(pillars) == 32
    assert all(entry.pillar and entry.motion in PILLAR_MOTIONS for entry in pillars)


def test_right_clips_score_one_and_wrong_ones_are_listed():
    wanted = list_prompts("held-out")[:12]
    perfect = measure_accuracy(draw_instead(wanted), wanted, seed=3)
    assert perfect["all"] == 1.0
    assert perfect["misses"] == []
    steady = perfect["consistency"]
    assert steady["flicker"] < MAX_STILL_FLICKER
    assert steady["colour_drift"] < MAX_COLOUR_DRIFT
    assert steady["keeps_colour"] == 1.0
    assert steady["keeps_shape"] > 0.95
    shifted = measure_accuracy(draw_instead(wanted[1:] + wanted[:1]), wanted, seed=3)
    agree = np.mean(
        [a.colour == b.colour for a, b in zip(wanted, wanted[1:] + wanted[:1], strict=True)]
    )
    assert shifted["colour"] == pytest.approx(agree)
    assert shifted["all"] < 1.0
    assert {miss["prompt"] for miss in shifted["misses"]} <= {a.caption() for a in wanted}


def test_json_output_is_one_object(monkeypatch, capsys):
    wanted = list_prompts("pillar")[:2]
    monkeypatch.setattr(
        prompt_accuracy, "open_checkpoint", lambda *args, **kwargs: draw_instead(wanted)
    )
    arguments = ["x", "--checkpoint", "unused", "--prompts", "pillar", "--limit", "2", "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    result = json.loads(capsys.readouterr().out)
    assert result["clips"] == 2
    assert result["reappears"] == 1.0
    assert result["num_inference_steps"] == 25
    assert result["consistency"]["flicker"] < MAX_STILL_FLICKER


def test_the_plain_output_lists_what_json_has(monkeypatch, capsys):
    wanted = list_prompts("held-out")[:2]
    monkeypatch.setattr(
        prompt_accuracy, "open_checkpoint", lambda *args, **kwargs: draw_instead(wanted)
    )
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", "unused", "--limit", "2"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert "colour       100.0 %" in lines
    assert {line.split()[0] for line in lines} >= {"flicker", "warping_error", "keeps_shape"}
