import numpy as np
import pytest

from mutoscope.runtime.evaluation.consistency import measure_consistency
from mutoscope.runtime.evaluation.flicker import measure_flicker
from mutoscope.runtime.evaluation.scene import make_scene
from tests.runtime.evaluation.defects import (
    alternate,
    draw,
    draw_on_texture,
    name_clip,
)
from training.clips import BACKGROUNDS, MOTIONS

# Nothing changes but the object; what its soft edge leaves beside the margin is far below a level.
MAX_STILL_FLICKER = 0.05
# The offset is the same in every background pixel; only what is clipped at 0 or 255 is missing.
LEVEL_TOLERANCE = 0.1


def measure(frames):
    return measure_flicker(frames, make_scene(frames))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_an_object_that_moves_is_no_flicker(motion, background):
    for seed in range(3):
        flicker = measure(draw(name_clip(motion=motion, background=background), seed=seed))
        assert flicker.levels.max() < MAX_STILL_FLICKER
        assert flicker.background_share.min() > 0.5


@pytest.mark.parametrize("motion", ["moves left", "moves right"])
def test_an_object_behind_a_pillar_is_no_flicker(motion):
    frames = draw(name_clip(motion=motion, pillar=True))
    assert measure(frames).levels.max() < MAX_STILL_FLICKER


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("levels", [2, 8, 24])
def test_flicker_is_the_number_of_levels_that_the_background_changes_by(motion, levels):
    frames = alternate(draw(name_clip(motion=motion)), levels)
    assert measure(frames).levels == pytest.approx(levels, abs=LEVEL_TOLERANCE)


def test_a_change_larger_than_that_of_an_object_is_flicker_if_all_of_the_frame_changes():
    frames = alternate(draw(name_clip(background="black")), 60)
    assert measure(frames).levels == pytest.approx(60, abs=LEVEL_TOLERANCE)


def test_flicker_is_given_for_the_pair_that_changes():
    frames = draw(name_clip()).copy()
    frames[5:] += 10
    levels = measure(frames).levels
    assert levels[4] == pytest.approx(10, abs=LEVEL_TOLERANCE)
    assert np.delete(levels, 4).max() < MAX_STILL_FLICKER


def test_a_patch_of_the_background_that_changes_counts_by_its_area():
    frames = draw(name_clip(motion="moves up")).copy()
    frames[1::2, :, 48:] += 20
    still = draw(name_clip(motion="moves up"))
    share = measure(frames).levels.mean() / 20
    assert 0.1 < share < 0.4
    assert measure(still).levels.mean() < MAX_STILL_FLICKER


def test_the_background_may_be_a_picture():
    frames = draw_on_texture()
    flicker = measure(frames)
    assert flicker.levels.max() < MAX_STILL_FLICKER
    assert flicker.background_share.min() > 0.5
    assert measure(alternate(frames, 8)).levels == pytest.approx(8, abs=LEVEL_TOLERANCE)


def test_a_clip_without_a_background_has_no_flicker_figure():
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    measured = measure_consistency(noise)
    assert measured.flicker is None
    assert measured.background_share < 0.1
