"""Which clips the batches of the denoiser's training are drawn from."""

import json

import numpy as np
import pytest

from training.clips import MOTIONS, NUM_FRAMES
from training.loop import TrainingPlan, make_state, save_state
from training.text_encoder import STATE_NAME, AttributeReader, make_text_encoder
from training.tokenizer import make_tokenizer
from training.unet import CaptionedLatents

CLIPS_PER_MOTION = 4
COUNT = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips of all motions, as many of each; each clip's latents are the number of its motion."""
    folder = tmp_path_factory.mktemp("state")
    reader = AttributeReader(make_text_encoder(make_tokenizer()))
    save_state(
        make_state(reader, TrainingPlan(minutes=0.0, learning_rate=0.0)), folder / STATE_NAME
    )
    numbers = np.arange(len(MOTIONS)).repeat(CLIPS_PER_MOTION)
    entries = [
        {"colour": "red", "shape": "star", "motion": MOTIONS[number], "background": "black"}
        for number in numbers
    ]
    latents = np.ones((len(numbers), NUM_FRAMES, 4, 8, 8)) * numbers[:, None, None, None, None]
    np.savez(
        folder / "latents_0000.npz",
        latents=latents.astype(np.float16),
        cells=np.zeros((len(numbers), NUM_FRAMES, 8, 8), np.bool_),
        attributes=np.array(json.dumps(entries)),
    )
    return CaptionedLatents(folder)


def count_motions(data, often):
    clean, *_ = data.draw(np.random.default_rng(1), COUNT, still=False, often=often)
    numbers = clean.flatten(1).mean(dim=1).round().int().tolist()
    return {motion: numbers.count(index) / COUNT for index, motion in enumerate(MOTIONS)}


def test_motions_are_drawn_as_often_as_there_are_clips_of_them(data):
    shares = count_motions(data, {})
    assert all(0.06 < share < 0.2 for share in shares.values()), shares


def test_motions_that_are_learned_late_are_drawn_more_often(data):
    shares = count_motions(data, {"orbits": 0.5, "grows": 0.2})
    assert shares["grows"] == pytest.approx(0.2 + 0.8 * 0.5 / 8, abs=0.07)
    assert shares["orbits"] == pytest.approx(0.8 * (0.5 + 0.5 / 8), abs=0.07)
