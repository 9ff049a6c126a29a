from dataclasses import replace

import numpy as np
import pytest

from benchmarks.clip_reader import keep_largest_patches, read_clip
from training.clips import (
    BACKGROUNDS,
    COLOURS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    ClipAttributes,
    draw_attributes,
    draw_clips,
    draw_frames,
)

CLIPS = 100
SMALLEST_ACCURACY = 0.99
FIELDS = ("colour", "shape", "motion", "background", "pillar")


def soften(rng, clips):
    """Blur by a 3 by 3 binomial and add noise with a deviation of 8 levels."""
    soft = np.pad(clips.astype(np.float32), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    soft = (soft[:, :, :-2] + 2 * soft[:, :, 1:-1] + soft[:, :, 2:]) / 4
    soft = (soft[:, :, :, :-2] + 2 * soft[:, :, :, 1:-1] + soft[:, :, :, 2:]) / 4
    return np.clip(np.rint(soft + rng.normal(0.0, 8.0, soft.shape)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(11)
    attributes = draw_attributes(rng, CLIPS)
    return attributes, draw_clips(rng, attributes)


def check_readings(attributes, clips):
    readings = [read_clip(clip) for clip in clips]
    for field in FIELDS:
        right = np.mean(
            [
                getattr(a, field) == getattr(r, field)
                for a, r in zip(attributes, readings, strict=True)
            ]
        )
        assert right >= SMALLEST_ACCURACY, field
    behind = [r.reappears for a, r in zip(attributes, readings, strict=True) if a.pillar]
    assert len(behind) >= 5
    assert all(behind)
    assert not any(r.reappears for a, r in zip(attributes, readings, strict=True) if not a.pillar)


def test_reads_drawn_clips(drawn):
    check_readings(*drawn)


def test_reads_soft_and_noisy_clips(drawn):
    attributes, clips = drawn
    check_readings(attributes, soften(np.random.default_rng(12), clips))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clip_that_stands_still_has_no_motion(shape):
    attributes = [ClipAttributes("red", shape, "orbits", "gray")] * NUM_FRAMES
    place = np.full(NUM_FRAMES, 30.0, np.float32)
    reading = read_clip(draw_frames(attributes, place, place, np.full_like(place, 10.0)))
    assert (reading.shape, reading.motion) == (shape, "none")


def test_an_empty_clip_shows_nothing():
    frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), 255, np.uint8)
    reading = read_clip(frames)
    assert (reading.colour, reading.shape, reading.motion) == ("none", "none", "none")
    assert reading.background == "white"


def test_a_thin_bar_is_none_of_the_shapes():
    frames = np.zeros((NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    frames[:, 30:34, 5:60] = COLOURS["green"]
    assert read_clip(frames).shape == "none"


def test_frames_in_random_order_show_no_straight_motion():
    attributes = ClipAttributes("blue", "circle", "moves right", "white")
    clip = draw_clips(np.random.default_rng(13), [attributes])[0]
    shuffled = clip[np.random.default_rng(14).permutation(NUM_FRAMES)]
    assert read_clip(clip).motion == "moves right"
    assert read_clip(shuffled).motion == "none"
    assert read_clip(clip[::-1]).motion == "moves left"


def test_an_object_that_changes_behind_the_pillar_does_not_reappear():
    attributes = ClipAttributes("red", "square", "moves right", "gray", pillar=True)
    for other in ({"colour": "blue"}, {"shape": "star"}):
        first, second = draw_clips_alike([attributes, replace(attributes, **other)])
        half = NUM_FRAMES // 2
        assert read_clip(first).reappears
        assert not read_clip(np.concatenate([first[:half], second[half:]])).reappears


def test_an_object_that_stays_behind_the_pillar_does_not_reappear():
    attributes = ClipAttributes("red", "square", "moves right", "gray", pillar=True)
    clip = draw_clips(np.random.default_rng(16), [attributes])[0]
    clip[NUM_FRAMES // 2 :] = clip[NUM_FRAMES // 2]
    assert not read_clip(clip).reappears


def draw_clips_alike(attributes):
    return [draw_clips(np.random.default_rng(15), [entry])[0] for entry in attributes]


def test_the_largest_patch_is_kept_even_when_it_winds():
    mask = np.zeros((1, 14, 12), np.bool_)
    for row in range(0, 12, 2):
        mask[0, row, 1:11] = True
        mask[0, row : row + 2, 10 if row % 4 == 0 else 1] = True
    snake = mask.copy()
    mask[0, 13, 5:8] = True
    np.testing.assert_array_equal(keep_largest_patches(mask), snake)


def test_backgrounds_are_read_whatever_the_pillar():
    rng = np.random.default_rng(17)
    for background in BACKGROUNDS:
        attributes = ClipAttributes("cyan", "circle", "moves left", background, pillar=True)
        reading = read_clip(draw_clips(rng, [attributes])[0])
        assert (reading.background, reading.pillar) == (background, True)
