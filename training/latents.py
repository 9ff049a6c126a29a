"""Encodes drawn clips to latents, in chunks that a running training picks up as they appear."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from training.clips import (
    BACKGROUNDS,
    NUM_FRAMES,
    SIZE,
    U8,
    ClipAttributes,
    draw_attributes,
    draw_clips,
)
from training.vae import load_vae, scale_pixels

CHUNK_CLIPS: Final = 128
FRAME_BATCH: Final = 64
SCALE_NAME: Final = "latents_scale.json"
CELL: Final = 8
"""Pixels per latent cell, on each side."""


@torch.no_grad()
def encode_frames(vae: AutoencoderKL, frames: U8) -> NDArray[np.float32]:
    """Return unscaled latents, float32 [N, C, h, w], of frames uint8 [N, H, W, 3]."""
    dtype = next(vae.parameters()).dtype
    parts = [
        vae.encode(scale_pixels(frames[first : first + FRAME_BATCH]).to(dtype)).latent_dist.mean
        for first in range(0, len(frames), FRAME_BATCH)
    ]
    return torch.cat(parts).float().numpy()


def find_object_cells(frames: U8, attributes: list[ClipAttributes]) -> NDArray[np.bool_]:
    """Return which latent cells show anything but background, bool [N, F, h, w]."""
    background = np.array([BACKGROUNDS[a.background] for a in attributes], np.uint8)
    differs = (frames != background[:, None, None, None]).any(axis=-1)
    cells = SIZE // CELL
    split = differs.reshape(len(frames), NUM_FRAMES, cells, CELL, cells, CELL)
    return split.any(axis=(3, 5))


def encode_chunks(state_dir: Path, first: int, last: int) -> None:
    """Draw and encode chunks `first` to `last - 1` into `state_dir`, skipping those that are there.

    A chunk holds scaled latents float16 [N, F, C, h, w], object cells and the clips' attributes.
    The first chunk also fixes the scaling factor, 1 / standard deviation of its latents.
    """
    vae = load_vae(state_dir, narrow=True).bfloat16()
    for index in range(first, last):
        path = state_dir / f"latents_{index:04d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng((3, index))
        attributes = draw_attributes(rng, CHUNK_CLIPS)
        frames = draw_clips(rng, attributes)
        latents = encode_frames(vae, frames.reshape(-1, SIZE, SIZE, 3))
        scale_path = state_dir / SCALE_NAME
        if not scale_path.exists():
            scale_path.write_text(json.dumps(1.0 / float(latents.std())))
        latents = latents.reshape(CHUNK_CLIPS, NUM_FRAMES, *latents.shape[1:])
        content = json.dumps([asdict(entry) for entry in attributes])
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial,
            latents=(latents * read_scaling_factor(state_dir)).astype(np.float16),
            cells=find_object_cells(frames, attributes),
            attributes=np.array(content),
        )
        partial.replace(path)


def read_scaling_factor(state_dir: Path) -> float:
    """Return what the autoencoder's latents are multiplied by, so that their deviation is 1."""
    return float(json.loads((state_dir / SCALE_NAME).read_text()))


class LatentClips:
    """The encoded clips in memory; `refresh` adds chunks that appeared since."""

    def __init__(self, state_dir: Path) -> None:
        """Read the chunks that are in `state_dir` now."""
        self.state_dir = state_dir
        self.latents: list[NDArray[np.float16]] = []
        self.cells: list[NDArray[np.bool_]] = []
        self.attributes: list[ClipAttributes] = []
        self._read: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read chunks that are new, in place."""
        for path in sorted(self.state_dir.glob("latents_????.npz")):
            if path in self._read:
                continue
            with np.load(path) as chunk:
                self.latents.extend(chunk["latents"])
                self.cells.extend(chunk["cells"])
                entries = json.loads(str(chunk["attributes"]))
            self.attributes.extend(ClipAttributes(**entry) for entry in entries)
            self._read.add(path)

    def list_moving(self, motion: str) -> NDArray[np.int64]:
        """Return the indices of the clips with a motion, int64."""
        moving = [index for index, a in enumerate(self.attributes) if a.motion == motion]
        return np.array(moving, np.int64)

    def __len__(self) -> int:
        """Return how many clips are in memory."""
        return len(self.attributes)
