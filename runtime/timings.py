"""Where the time of a generation went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timings:
    """Wall time in seconds, by part.

    Attributes:
        seconds_load: Reading and checking files, making sessions; 0 once all is loaded.
        seconds_text_encoder: Prompt and negative prompt.
        seconds_image_encoder: The image as the denoiser attends to it.
        seconds_vae_encoder: The image as latents.
        seconds_denoiser: All steps, and both passes of each where guidance is on.
        seconds_sampler: The rest of the loop: schedule rows, noise, guidance, the copies into the
            arrays that the denoiser is fed, callbacks.
        seconds_vae_decoder: Latents to frames.
        seconds_preview_decoder: Latents to the frames of previews.
        seconds_other: Components of other names.
        seconds_output: What took the frames: `on_frames`, and in the commands the encoding and
            writing of the file.
        seconds_total: From the call to the frames, without seconds_output.
    """

    seconds_load: float = 0.0
    seconds_text_encoder: float = 0.0
    seconds_image_encoder: float = 0.0
    seconds_vae_encoder: float = 0.0
    seconds_denoiser: float = 0.0
    seconds_sampler: float = 0.0
    seconds_vae_decoder: float = 0.0
    seconds_preview_decoder: float = 0.0
    seconds_other: float = 0.0
    seconds_output: float = 0.0
    seconds_total: float = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to the field `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
