from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from training.clips import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    NUM_FRAMES,
    PILLAR_COLOUR,
    PILLAR_SPAN,
    SHAPE_REACH,
    SHAPES,
    SIZE,
    ClipAttributes,
    draw_attributes,
    draw_caption,
    draw_clips,
    draw_path,
    list_held_out_attributes,
    list_training_attributes,
    measure_distance,
    name_background,
)

FIELDS = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS}
STRAIGHT = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


def test_held_out_and_training_combinations_split_all_combinations():
    held_out, training = list_held_out_attributes(), list_training_attributes()
    assert len(set(held_out)) == 128
    assert len(set(training)) == 448
    assert not set(held_out) & set(training)


@pytest.mark.parametrize("field", FIELDS)
def test_each_value_is_held_out_equally_often(field):
    counts = Counter(getattr(attributes, field) for attributes in list_held_out_attributes())
    assert set(counts) == set(FIELDS[field])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_training_never_draws_a_held_out_combination_even_behind_the_pillar():
    drawn = draw_attributes(np.random.default_rng(0), 5000)
    assert any(attributes.pillar for attributes in drawn)
    plain = {replace(attributes, pillar=False) for attributes in drawn}
    assert plain <= set(list_training_attributes())


def test_the_same_seed_draws_the_same_clips():
    first, second = (
        draw_clips(rng, draw_attributes(rng, 3))
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    )
    assert first.dtype == np.uint8
    assert first.shape == (3, NUM_FRAMES, SIZE, SIZE, 3)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frame_shows_the_named_colours(shape):
    attributes = [
        ClipAttributes(colour, shape, "orbits", bg) for colour in COLOURS for bg in BACKGROUNDS
    ]
    for entry, clip in zip(
        attributes, draw_clips(np.random.default_rng(1), attributes), strict=True
    ):
        colours = Counter(map(tuple, clip[0].reshape(-1, 3).tolist())).most_common(2)
        assert [colour for colour, _ in colours] == [
            BACKGROUNDS[entry.background],
            COLOURS[entry.colour],
        ]


@pytest.mark.parametrize(("motion", "direction"), STRAIGHT.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_moving_shape_crosses_24_pixels_without_leaving_the_frame(motion, direction, shape):
    rng = np.random.default_rng(2)
    reach = SHAPE_REACH[shape]
    for _ in range(50):
        path = draw_path(rng, ClipAttributes("red", shape, motion, "gray"))
        steps = np.stack([np.diff(path.x), np.diff(path.y)], axis=1) @ np.array(direction)
        assert steps.min() > 0
        assert steps.sum() >= 24 - 1e-3
        across = path.y if direction[0] else path.x
        assert np.ptp(across) == 0
        for centre in (path.x, path.y):
            assert (centre - reach * path.radius).min() > 0
            assert (centre + reach * path.radius).max() < SIZE


def test_a_growing_clip_ends_with_at_least_four_times_its_area():
    rng = np.random.default_rng(3)
    grows = draw_path(rng, ClipAttributes("red", "star", "grows", "gray"))
    shrinks = draw_path(rng, ClipAttributes("red", "star", "shrinks", "gray"))
    assert (grows.radius[-1] / grows.radius[0]) ** 2 >= 4
    assert (shrinks.radius[0] / shrinks.radius[-1]) ** 2 >= 4


def test_a_bounce_reaches_the_floor_twice_and_the_top_in_between():
    path = draw_path(np.random.default_rng(4), ClipAttributes("red", "star", "bounces", "gray"))
    turns = np.sign(np.diff(np.sign(np.diff(path.y))))
    assert np.count_nonzero(turns < 0) == 2
    assert np.count_nonzero(turns > 0) >= 1
    assert np.ptp(path.y) >= 20


def test_the_pillar_hides_most_of_the_object_and_lets_it_out_again():
    attributes = ClipAttributes("cyan", "circle", "moves right", "black", pillar=True)
    clip = draw_clips(np.random.default_rng(5), [attributes])[0]
    visible = (clip == COLOURS["cyan"]).all(axis=-1)
    left, right = (int(edge) for edge in PILLAR_SPAN)
    assert (clip[:, :, left:right] == PILLAR_COLOUR).all()
    assert visible[0, :, :left].any()
    assert visible[-1, :, right:].any()
    area = visible.sum(axis=(1, 2))
    assert area.min() < 0.1 * area.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_grows_by_one_per_pixel_away_from_an_edge(shape):
    down = np.array([20.0, 21.0, 22.0], np.float32)
    distance = measure_distance(shape, np.zeros_like(down), down, np.float32(10.0))
    assert distance.dtype == np.float32
    assert (distance > 0).all()
    slope = np.diff(distance)
    assert (slope > 0.5).all()
    assert (slope < 1.0 + 1e-4).all()


def test_captions_leave_parts_out_but_never_say_anything_wrong():
    rng = np.random.default_rng(6)
    attributes = ClipAttributes("red", "star", "moves left", "gray", pillar=True)
    captions = Counter(draw_caption(rng, attributes, still=False) for _ in range(2000))
    assert captions.most_common(1)[0][0] == attributes.caption()
    assert "a star moves left behind a pillar on a gray background" in captions
    assert "a red star moves left behind a pillar" in captions
    assert attributes.still_caption() in captions
    words = set(f"{attributes.caption()} {attributes.still_caption()}".split())
    assert {word for caption in captions for word in caption.split()} <= words


def test_captions_leave_out_the_usual_background_alone():
    rng = np.random.default_rng(8)
    attributes = ClipAttributes("red", "star", "orbits", "white")
    captions = {draw_caption(rng, attributes, still=False) for _ in range(300)}
    assert all(caption.endswith(" on a white background") for caption in captions)


def test_the_usual_background_is_named_where_none_is():
    assert name_background("a red star orbits") == "a red star orbits on a gray background"
    assert name_background("a red star on a white background") == "a red star on a white background"
    assert name_background("") == ""


def test_captions_of_single_frames_name_no_motion():
    rng = np.random.default_rng(7)
    for attributes in draw_attributes(rng, 300):
        assert attributes.motion not in draw_caption(rng, attributes, still=True)
