import json

import numpy as np

from training.clips import NUM_FRAMES, SIZE, ClipAttributes
from training.latents import LatentClips, find_object_cells


def test_object_cells_are_those_with_any_other_pixel():
    frames = np.full((1, NUM_FRAMES, SIZE, SIZE, 3), 128, np.uint8)
    frames[0, 5, 17, 40] = (230, 30, 30)
    cells = find_object_cells(frames, [ClipAttributes("red", "star", "orbits", "gray")])
    assert cells.shape == (1, NUM_FRAMES, 8, 8)
    assert np.argwhere(cells).tolist() == [[0, 5, 2, 5]]


def write_chunk(folder, index, motion):
    entry = {"colour": "red", "shape": "star", "motion": motion, "background": "gray"}
    np.savez(
        folder / f"latents_{index:04d}.npz",
        latents=np.full((2, NUM_FRAMES, 4, 8, 8), index, np.float16),
        cells=np.zeros((2, NUM_FRAMES, 8, 8), np.bool_),
        attributes=np.array(json.dumps([entry, entry])),
    )


def test_refresh_adds_new_chunks_once(tmp_path):
    write_chunk(tmp_path, 0, "orbits")
    clips = LatentClips(tmp_path)
    assert len(clips) == 2
    write_chunk(tmp_path, 1, "bounces")
    clips.refresh()
    clips.refresh()
    assert [entry.motion for entry in clips.attributes] == ["orbits"] * 2 + ["bounces"] * 2
    assert [float(latents.mean()) for latents in clips.latents] == [0, 0, 1, 1]
