from __future__ import annotations

import math

import numpy as np
import pytest

from mutoscope.runtime.metrics import (
    MAXIMUM_PSNR_DB,
    cosine_similarity,
    max_abs_error,
    psnr_db,
    relative_error,
)


def test_equal_results_have_the_largest_psnr() -> None:
    values = np.arange(6, dtype=np.float32)
    assert psnr_db(values, values) == MAXIMUM_PSNR_DB
    assert max_abs_error(values, values) == 0
    assert cosine_similarity(values, values) == pytest.approx(1)


def test_psnr_of_frames_has_the_peak_255() -> None:
    reference = np.full((2, 3), 100, np.uint8)
    assert psnr_db(reference, reference + 1) == pytest.approx(20 * math.log10(255))


def test_uint8_differences_do_not_wrap_around() -> None:
    assert max_abs_error(np.array([0], np.uint8), np.array([255], np.uint8)) == 255


def test_psnr_of_floats_has_the_range_of_the_reference_as_peak() -> None:
    reference = np.array([-1, 3], np.float32)
    assert psnr_db(reference, reference + 0.04) == pytest.approx(40, abs=1e-3)


def test_psnr_of_a_constant_reference_has_its_magnitude_as_peak() -> None:
    reference = np.full(4, -2.0)
    assert psnr_db(reference, reference + 0.02) == pytest.approx(40)
    assert psnr_db(np.zeros(4), np.ones(4)) == -MAXIMUM_PSNR_DB


def test_not_a_number_is_as_bad_as_can_be() -> None:
    reference, result = np.ones(2), np.array([1, math.nan])
    assert psnr_db(reference, result) == -MAXIMUM_PSNR_DB
    assert max_abs_error(reference, result) == math.inf
    assert cosine_similarity(reference, result) == 0


def test_cosine_similarity_is_that_of_the_vectors() -> None:
    assert cosine_similarity(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(0.5**0.5)
    assert cosine_similarity(np.array([1.0, 0]), np.array([-2.0, 0])) == -1
    assert cosine_similarity(np.zeros(2), np.zeros(2)) == 1
    assert cosine_similarity(np.zeros(2), np.ones(2)) == 0


def test_relative_error_is_the_length_of_the_difference_over_that_of_the_reference() -> None:
    reference = np.array([[3, 0], [0, 4]], np.float32)
    assert relative_error(reference, reference + np.float32(0.5)) == pytest.approx(1 / 5)
    assert relative_error(np.array([200], np.uint8), np.array([250], np.uint8)) == 0.25
    assert relative_error(reference, reference) == 0


def test_relative_error_to_zeros_is_nothing_or_infinite() -> None:
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.zeros(2), np.ones(2)) == math.inf
    assert relative_error(np.ones(2), np.array([1, math.nan])) == math.inf


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        psnr_db(np.zeros((1, 3)), np.zeros(3))
