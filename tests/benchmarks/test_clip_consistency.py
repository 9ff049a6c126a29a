import numpy as np
import pytest

from benchmarks.clip_consistency import measure_kept_words, score_consistency
from tests.runtime.evaluation.defects import alternate, draw, name_clip


def test_words_that_change_are_counted_by_frames():
    still = draw(name_clip("red"))
    recoloured = draw(name_clip("red"), name_clip("blue"), first=12)
    reshaped = draw(name_clip(), name_clip(shape="square"), first=12)
    assert measure_kept_words(still) == {"keeps_colour": 1.0, "keeps_shape": 1.0}
    assert measure_kept_words(recoloured) == {"keeps_colour": 0.75, "keeps_shape": 1.0}
    assert measure_kept_words(reshaped) == {"keeps_colour": 1.0, "keeps_shape": 0.75}


def test_a_clip_without_an_object_keeps_nothing():
    empty = np.full((16, 64, 64, 3), 128, np.uint8)
    assert measure_kept_words(empty) == {"keeps_colour": None, "keeps_shape": None}


def test_scores_are_means_over_clips():
    wanted = [name_clip(), name_clip()]
    clean = draw(wanted[0])
    score = score_consistency(wanted, [clean, alternate(clean, 8)])
    assert score["flicker"] == pytest.approx(4, abs=0.1)
    assert score["keeps_colour"] == 1.0


def test_a_clip_that_should_grow_counts_for_no_area_drift():
    wanted = [name_clip(motion="grows"), name_clip()]
    clips = [draw(attributes) for attributes in wanted]
    assert score_consistency(wanted, clips)["area_drift"] < 0.06
    assert score_consistency(wanted[:1], clips[:1])["area_drift"] is None
    assert score_consistency(wanted[1:], clips[:1])["area_drift"] > 0.5
