"""A generated clip: its frames, and all that is needed to make it again."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.timings import Timings


@dataclass(frozen=True)
class Video:
    """One clip.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB; F is 0 where on_frames took those of a generation.
        frame_rate: Frames per second.
        prompt: The text that it was made from; None if it was made from embeddings.
        negative_prompt: The text it was guided away from, where that had a part in it.
        settings: The settings that it was made with, seed included; None for a clip of your own.
        timings: Where the time went.
        latents: What the frames were decoded from, float32 [1, C, F, h, w]; None for a clip of your
            own.
        variants: What the graphs computed in, by component; None for a clip of your own.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    frame_rate: float
    prompt: str | None = None
    negative_prompt: str | None = None
    settings: Settings | None = None
    timings: Timings = field(default_factory=Timings, repr=False)
    latents: NDArray[np.float32] | None = field(default=None, repr=False)
    variants: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Check the frames; raises `ParameterError`."""
        shape = self.frames.shape
        # Only a generation has a reason to be without frames.
        lengths = shape if self.settings is None else shape[1:]
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not min(lengths):
            raise ParameterError(
                f"frames is {self.frames.dtype}{list(shape)}; it must be uint8 [F, H, W, 3]"
            )
        if not self.frame_rate > 0:
            raise ParameterError(f"frame_rate is {self.frame_rate}; it must be above 0: use 8")

    @property
    def seed(self) -> int | None:
        """The seed that it was made with, drawn at random if none was given."""
        return self.settings.seed if self.settings else None

    def describe(self) -> dict[str, Any]:
        """Return a JSON object that says how the clip was made; files carry it where they can."""
        values: dict[str, Any] = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        if self.settings is not None:
            names = ("seed", "scheduler", "num_inference_steps", "guidance_scale")
            values |= {name: getattr(self.settings, name) for name in names}
            values["min_guidance_scale"] = self.settings.min_guidance_scale
            values["conditions"] = self.settings.conditions or None
            values["context_length"] = self.settings.context_length
            values["context_stride"] = self.settings.context_stride
        values["variants"] = self.variants
        return {name: value for name, value in values.items() if value is not None}

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the clip to a file or a folder, whole or not at all.

        The ending of `path` chooses the format:

        - `.mp4` is H.264 (4:2:0, high quality); height and width must be even.
        - `.webm` is VP9 (4:2:0, high quality).
        - `.gif` has 256 colours in each frame.
        - `.webp` and `.apng` are animated and lossless.
        - `.png` is an image, for a clip of one frame.
        - `.npy` is the array of frames.
        - No ending, or a slash at the end: a folder of PNG files, frame_0001.png and so on, with
          more digits for more than 9999 frames.

        Args:
            path: Where to write.
            force: Replace what is there. A folder is replaced only if it holds frames and nothing
                else.

        Returns:
            The path.

        Raises:
            OutputError: The ending is unknown, the path exists or cannot be written, the disk is
                full, or on_frames took the frames.
        """
        from mutoscope.runtime.video_files import save_video

        return save_video(self, path, force=force)
