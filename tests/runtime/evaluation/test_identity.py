import numpy as np
import pytest

from mutoscope.runtime.evaluation.identity import Drift, measure_drift, measure_steps, track_object
from mutoscope.runtime.evaluation.scene import make_scene
from tests.runtime.evaluation.defects import NUM_FRAMES, alternate, draw, draw_mixed, name_clip
from training.clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

# One colour, drawn without noise.
MAX_COLOUR_DRIFT = 0.5
# Pixels at the edge count by their coverage; what is left is rounding to 8 bits.
MAX_AREA_DRIFT = 0.06
# A shape of some 350 pixels, at another offset to the grid in each frame.
MAX_SHAPE_DRIFT = 0.12
# OpenCV rounds the matrix and the cube root; the distances are 30 to 180.
LAB_TOLERANCE = 0.5


def measure(frames) -> Drift:
    drift = measure_drift(track(frames))
    assert drift is not None
    return drift


def track(frames):
    return track_object(frames, make_scene(frames))


def make_lab(colour):
    """CIE Lab of an sRGB colour, by the formulas of IEC 61966-2-1 and CIE 15."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    scaled = matrix @ linear / (0.9505, 1.0, 1.089)
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", sorted({*MOTIONS} - {"grows", "shrinks"}))
def test_an_object_that_only_moves_does_not_drift(shape, motion):
    for background in BACKGROUNDS:
        drift = measure(draw(name_clip("green", shape, motion, background)))
        assert drift.colour_max < MAX_COLOUR_DRIFT
        assert drift.area < MAX_AREA_DRIFT
        assert drift.shape < MAX_SHAPE_DRIFT
        assert drift.num_frames_seen == drift.num_frames_whole == NUM_FRAMES


@pytest.mark.parametrize("colour", sorted({*COLOURS} - {"red"}))
def test_colour_drift_is_the_distance_of_the_colours(colour):
    drift = measure(draw(name_clip(), name_clip(colour), first=4))
    expected = np.linalg.norm(make_lab(COLOURS[colour]) - make_lab(COLOURS["red"]))
    assert drift.colour == pytest.approx(expected, abs=LAB_TOLERANCE)
    assert drift.colour_max == pytest.approx(expected, abs=LAB_TOLERANCE)
    assert drift.shape < MAX_SHAPE_DRIFT


def test_colour_drift_grows_with_the_change_and_its_length():
    drifts = [measure(draw_mixed(name_clip(), "blue", share)) for share in (0.0, 0.1, 0.4, 1.0)]
    assert [d.colour for d in drifts] == sorted(d.colour for d in drifts)
    late = measure(draw(name_clip(), name_clip("blue"), first=12))
    early = measure(draw(name_clip(), name_clip("blue"), first=6))
    assert MAX_COLOUR_DRIFT < late.colour < early.colour


@pytest.mark.parametrize("scale", [0.8, 1.1, 1.2])
def test_area_drift_is_the_relative_change_of_the_area(scale):
    drift = measure(draw(name_clip(motion="moves up"), scale=scale, first=4))
    assert drift.area == pytest.approx(abs(scale**2 - 1), abs=MAX_AREA_DRIFT)
    assert drift.shape < MAX_SHAPE_DRIFT


def test_a_clip_that_grows_shows_it_in_area_and_not_in_shape():
    drift = measure(draw(name_clip(motion="grows")))
    assert drift.area > 0.5
    assert drift.shape < MAX_SHAPE_DRIFT


@pytest.mark.parametrize("shape", sorted({*SHAPES} - {"circle"}))
def test_another_shape_is_shape_drift(shape):
    drift = measure(draw(name_clip(), name_clip(shape=shape), first=4))
    same = measure(draw(name_clip(), first=4))
    assert drift.shape > same.shape + 0.1
    assert drift.colour < MAX_COLOUR_DRIFT


def test_flicker_of_the_background_is_no_drift_of_the_area():
    drift = measure(alternate(draw(name_clip()), 12))
    assert drift.area < MAX_AREA_DRIFT
    assert drift.shape < MAX_SHAPE_DRIFT


@pytest.mark.parametrize("motion", ["moves left", "moves right"])
def test_an_object_that_comes_back_from_behind_a_pillar_has_not_drifted(motion):
    for seed in range(3):
        drift = measure(draw(name_clip(motion=motion, pillar=True), seed=seed))
        assert 2 <= drift.num_frames_whole < drift.num_frames_seen < NUM_FRAMES
        assert drift.colour_max < MAX_COLOUR_DRIFT
        assert drift.area < MAX_AREA_DRIFT
        assert drift.shape < MAX_SHAPE_DRIFT


def test_an_object_that_comes_back_in_another_colour_has_drifted():
    first = name_clip(motion="moves right", pillar=True)
    later = name_clip("blue", motion="moves right", pillar=True)
    assert measure(draw(first, later)).colour > 50
    later = name_clip(shape="square", motion="moves right", pillar=True)
    assert measure(draw(first, later)).shape > measure(draw(first)).shape + 0.03


def test_a_clip_without_an_object_has_no_drift():
    assert measure_drift(track(np.full((6, 32, 32, 3), 90, np.uint8))) is None


def test_an_object_that_stands_still_is_one():
    frames = np.repeat(draw(name_clip())[:1], 6, axis=0)
    drift = measure(frames)
    assert drift.num_frames_whole == 6
    assert drift.colour == drift.area == drift.shape == 0.0


def test_a_jump_shows_in_the_motion_of_its_pair_with_its_length():
    still, jumped = (measure_steps(track(draw(name_clip(), jump=j))).motion for j in (0.0, -6.0))
    assert still.max() < 0.3
    assert int(np.argmax(jumped)) == NUM_FRAMES // 2 - 1
    assert jumped.max() == pytest.approx(6.0, abs=0.5)


def test_steps_name_the_pair_where_colour_area_and_shape_change():
    later = name_clip("blue", "square")
    steps = measure_steps(track(draw(name_clip(), later, scale=1.15)))
    for values in (steps.colour, steps.area, steps.shape):
        assert int(np.argmax(values)) == NUM_FRAMES // 2 - 1


def test_steps_are_unknown_where_the_object_is_hidden():
    hidden = track(draw(name_clip(motion="moves right", pillar=True)))
    steps = measure_steps(hidden)
    gone = np.flatnonzero(~hidden.seen)
    assert len(gone) >= 1
    assert np.isnan(steps.colour[gone]).all()
    assert np.isnan(steps.motion[gone]).all()
