import numpy as np
import pytest

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.evaluation.consistency import measure_consistency
from mutoscope.runtime.evaluation.joins import (
    JoinRatio,
    average_ratios,
    compare_joins,
    list_window_joins,
)
from tests.runtime.evaluation.defects import brighten_from, draw, name_clip


@pytest.mark.parametrize(
    ("num_frames", "length", "stride", "joins"),
    [
        (32, 16, 8, [8, 16]),
        (32, 16, 16, [16]),
        (30, 16, 8, [8, 14]),
        (17, 16, 8, [1]),
        (6, 2, 2, [2, 4]),
    ],
)
def test_joins_are_the_starts_of_the_windows(num_frames, length, stride, joins):
    assert list_window_joins(num_frames, length, stride) == joins


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [
        (16, 8, "context_length is 16; it must be from 1 to 15 for a clip of 16 frames"),
        (0, 1, "context_length is 0; it must be from 1 to 15"),
        (8, 9, "context_stride is 9; it must be from 1 to 8, the context_length: use 4"),
        (8, 0, "context_stride is 0; it must be from 1 to 8"),
    ],
)
def test_windows_that_have_no_join_are_refused(length, stride, message):
    with pytest.raises(ParameterError, match=message):
        list_window_joins(16, length, stride)


def test_a_ratio_compares_pairs_at_joins_with_the_others():
    values = np.array([1.0, 4.0, 1.0, np.nan, 2.0, 2.0])
    assert compare_joins(values, [2, 4]) == JoinRatio(4.0, 1.5, 4.0 / 1.5, 1, 4)


def test_a_ratio_to_nothing_is_unknown():
    assert compare_joins(np.array([3.0, 0.0, 0.0]), [1]) == JoinRatio(3.0, 0.0, None, 1, 2)
    assert compare_joins(np.array([np.nan, 1.0, 1.0]), [1]) == JoinRatio(None, 1.0, None, 0, 2)


def test_the_ratio_of_several_clips_is_that_of_their_means():
    ratios = [
        JoinRatio(0.02, 0.01, 2.0, 1, 14),
        JoinRatio(2.0, 2.0, 1.0, 2, 12),
        JoinRatio(None, None, None, 0, 0),
    ]
    mean = average_ratios(ratios)
    assert mean.ratio == pytest.approx(2.02 / 2.01)
    assert (mean.num_pairs_at_joins, mean.num_pairs_elsewhere) == (3, 26)


def test_flicker_at_joins_only_is_found_there_and_a_steady_clip_has_none():
    clean = draw(name_clip(motion="moves up"))
    rng = np.random.default_rng(1)
    noisy = np.clip(clean + rng.normal(0, 1.0, clean.shape), 0, 255).astype(np.uint8)
    steady = measure_consistency(noisy).compare_joins([4, 8, 12])
    broken = measure_consistency(brighten_from(noisy, 6, [4, 8, 12])).compare_joins([4, 8, 12])
    elsewhere = measure_consistency(brighten_from(noisy, 6, [6])).compare_joins([4, 8, 12])
    assert steady["flicker"].ratio == pytest.approx(1.0, abs=0.1)
    assert steady["warping_error"].ratio == pytest.approx(1.0, abs=0.3)
    assert broken["flicker"].ratio > 4
    assert broken["warping_error"].ratio > 4
    assert elsewhere["flicker"].ratio < 1


def test_a_jump_at_a_join_is_found_in_the_motion():
    measured = measure_consistency(draw(name_clip(), jump=-6.0))
    assert measured.compare_joins([8])["motion_jump"].ratio > 5
    assert measured.compare_joins([4])["motion_jump"].ratio < 1


@pytest.mark.parametrize("frame", [0, 16, -1])
def test_a_join_outside_the_clip_is_refused(frame):
    measured = measure_consistency(draw(name_clip()))
    with pytest.raises(ParameterError, match=f"joins has {frame}; .* from 1 to 15 in this clip"):
        measured.compare_joins([8, frame])


def test_joins_at_every_frame_leave_nothing_to_compare_with():
    measured = measure_consistency(draw(name_clip()))
    with pytest.raises(ParameterError, match="joins names every frame"):
        measured.compare_joins(range(1, 16))
