import numpy as np
import pytest

from mutoscope.runtime.evaluation.warping import find_visible, measure_warping, warp
from tests.runtime.evaluation.defects import (
    alternate,
    draw,
    draw_mixed,
    make_pan,
    name_clip,
)
from training.clips import MOTIONS

# What the flow leaves at soft edges of small shapes; mean of a clip. Drawn clips have up to 2.8e-4.
MAX_CLEAN_ERROR = 5e-4
# Bilinear interpolation, and the border, where the picture leaves the frame.
MAX_PAN_ERROR = 3e-4


def measure(frames):
    return float(np.nanmean(measure_warping(frames).errors))


@pytest.mark.parametrize("motion", MOTIONS)
def test_motion_that_the_flow_explains_is_no_error(motion):
    for seed in range(3):
        warping = measure_warping(draw(name_clip(motion=motion), seed=seed))
        assert warping.errors.mean() < MAX_CLEAN_ERROR
        assert warping.visible_share.mean() > 0.5


def test_a_picture_that_moves_has_no_error_though_its_pixels_change():
    frames = make_pan(step=3)
    plain = np.square(np.diff(frames.astype(np.float64) / 255, axis=0)).mean()
    assert measure(frames) < MAX_PAN_ERROR < plain / 20


@pytest.mark.parametrize("levels", [4, 8, 16, 32])
def test_a_change_of_brightness_is_its_square(levels):
    clean = draw(name_clip())
    expected = (levels / 255) ** 2
    assert measure(alternate(clean, levels)) == pytest.approx(expected, rel=0.3)


def test_the_error_grows_with_the_change_of_colour():
    errors = [measure(draw_mixed(name_clip(), "blue", share)) for share in (0.0, 0.2, 0.5, 1.0)]
    assert errors == sorted(errors)
    assert errors[-1] > 4 * errors[1] > 4 * errors[0]


def test_the_error_grows_with_noise():
    rng = np.random.default_rng(2)
    clean = draw(name_clip()).astype(np.float64)
    noise = rng.standard_normal(clean.shape)
    errors = [
        measure(np.clip(np.rint(clean + sigma * noise), 0, 255).astype(np.uint8))
        for sigma in (0, 2, 4, 8)
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 5 * errors[0]


def test_warp_takes_what_lies_where_the_flow_points():
    values = np.arange(20 * 20, dtype=np.float32).reshape(20, 20)
    flow = np.zeros((20, 20, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2.0, 1.0
    assert np.array_equal(warp(values, flow)[:19, :18], values[1:, 2:])


def test_a_pixel_whose_flow_does_not_return_is_not_visible():
    forward = np.zeros((20, 20, 2), np.float32)
    backward = np.zeros_like(forward)
    assert find_visible(forward, backward).all()
    backward[5:8, 5:8] = 3.0
    visible = find_visible(forward, backward)
    assert not visible[5:8, 5:8].any()
    assert visible.sum() == 400 - 9


def test_the_edge_of_what_moves_is_not_judged():
    forward = np.zeros((20, 20, 2), np.float32)
    forward[8:12, 8:12, 0] = 1.0
    visible = find_visible(forward, np.zeros_like(forward))
    assert not visible[7:13, 8].any()
    assert visible[0].all()
