import numpy as np
import pytest

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.evaluation.consistency import measure_consistency, measure_similarity
from tests.runtime.evaluation.defects import alternate, draw, make_texture, name_clip

# The plain sum over windows against OpenCV's separable one.
SSIM_TOLERANCE = 1e-6


def compute_ssim(reference, found):
    """SSIM of one channel [H, W], window by window, as the paper writes it."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for row in range(reference.shape[0] - 10):
        for column in range(reference.shape[1] - 10):
            x, y = (
                part[row : row + 11, column : column + 11].astype(float)
                for part in (reference, found)
            )
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            cov = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append(
                (2 * mean_x * mean_y + c1)
                * (2 * cov + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return np.mean(values)


def test_a_clip_is_equal_to_itself():
    frames = draw(name_clip())
    similarity = measure_similarity(frames, frames)
    assert similarity.ssim == pytest.approx(1.0)
    assert similarity.psnr_db == 200.0


def test_ssim_is_that_of_the_paper():
    rng = np.random.default_rng(4)
    first = np.rint(make_texture(20, 24)).astype(np.uint8)
    second = np.clip(first + rng.normal(0, 20, first.shape), 0, 255).astype(np.uint8)
    clips = (np.stack([first, second]), np.stack([second, second]))
    expected = np.mean([compute_ssim(first[..., c], second[..., c]) for c in range(3)] + [1.0] * 3)
    assert measure_similarity(*clips).ssim == pytest.approx(expected, abs=SSIM_TOLERANCE)


def test_both_figures_fall_as_the_clip_gets_worse():
    frames = draw(name_clip())
    found = [measure_similarity(frames, alternate(frames, levels)) for levels in (2, 8, 32)]
    assert [s.psnr_db for s in found] == sorted((s.psnr_db for s in found), reverse=True)
    assert [s.ssim for s in found] == sorted((s.ssim for s in found), reverse=True)


def test_clips_of_other_sizes_are_not_compared():
    frames = draw(name_clip())
    with pytest.raises(ParameterError, match="has 8 frames of 64 x 64 and the reference 16 frames"):
        measure_similarity(frames, frames[:8])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 64, 64, 3), "the clip has 1 frame; what changes over time needs at least 2"),
        ((4, 12, 64, 3), "frames of 12 x 64; optical flow needs at least 16 x 16"),
    ],
)
def test_a_clip_that_is_too_small_is_refused(shape, message):
    with pytest.raises(ParameterError, match=message):
        measure_consistency(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (3, 17, 90, 3), (2, 200, 16, 3)])
def test_the_smallest_and_narrow_clips_are_measured(shape):
    frames = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    measured = measure_consistency(frames)
    assert len(measured.pairs["flicker"]) == shape[0] - 1


def test_a_clip_of_one_colour_is_perfectly_still():
    measured = measure_consistency(np.full((5, 32, 32, 3), 77, np.uint8))
    assert measured.flicker == measured.warping_error == 0.0
    assert measured.drift is None
