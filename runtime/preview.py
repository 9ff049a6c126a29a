"""Previews: what the model takes the video to be, shown after each step.

Each row of a schedule table tells how to estimate the clean latents from what the model just saw
and said; a small decoder makes frames of them. It happens beside the sampling and changes nothing
in it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import OutputError, ParameterError, ScheduleError
from mutoscope.runtime.manifest import PREVIEW_DECODER
from mutoscope.runtime.outputs import check_replaceable, check_writable, new_file
from mutoscope.runtime.sampler import F32, OnStep, StepInfo
from mutoscope.runtime.schedule import ScheduleTable

Frames: TypeAlias = NDArray[np.uint8]
Decode: TypeAlias = Callable[[F32], Frames]
PreviewKind: TypeAlias = Literal["file", "terminal"]

MAX_SHEET_FRAMES = 8
MAX_SHEET_ROW = 4
SHEET_GAP = 2
MAX_TERMINAL_LINES = 24
# Its upper half has the foreground colour, its lower half the background's: two pixels.
HALF_BLOCK = "\u2580"
TRUECOLOR_NAMES = ("24bit", "truecolor")


@dataclass(frozen=True)
class PreviewInfo:
    """What on_preview sees after a step. Frames are decoded when they are first asked for.

    Attributes:
        step_index: Step just done, from 0.
        num_steps: Steps in all, that is, denoiser calls.
        denoised: What the model takes the clean latents to be, float32 [1, C, F, h, w], read-only.
        decode: Makes frames, uint8 [F, H, W, 3], of such latents.
    """

    step_index: int
    num_steps: int
    denoised: F32 = field(repr=False)
    decode: Decode = field(repr=False)

    @property
    def num_frames(self) -> int:
        """Length of the clip."""
        return int(self.denoised.shape[2])

    @cached_property
    def frames(self) -> Frames:
        """The clip as the model takes it to be now, uint8 [F, H, W, 3] RGB; all are decoded."""
        return self.decode(self.denoised)

    def decode_frames(self, indices: Iterable[int]) -> Frames:
        """Return some of the frames, a new uint8 [N, H, W, 3], without the work for the others.

        A preview decoder knows nothing of time, so that they are as they would be among all.
        """
        return self.decode(np.take(self.denoised, list(indices), axis=2))


OnPreview: TypeAlias = Callable[[PreviewInfo], None]


def check_preview(components: Collection[str], table: ScheduleTable) -> None:
    """Raise unless a bundle can show previews; for use before the work.

    Args:
        components: The names of the bundle's components.
        table: The schedule table of the generation.

    Raises:
        ParameterError: The bundle has no preview decoder.
        ScheduleError: No row of the table tells an estimate.
    """
    if PREVIEW_DECODER not in components:
        raise ParameterError(
            f"this bundle has no {PREVIEW_DECODER}, so it shows no preview: export it with "
            "--preview-vae DIR, the folder of an AutoencoderTiny"
        )
    if not table.has_denoised:
        raise ScheduleError(
            f"the schedule table of {table.scheduler} tells no estimates, so there is no preview "
            "(made by an older version, or the scheduler has none): export again, or use another "
            "scheduler"
        )


def make_preview_step(
    decode: Decode, on_preview: OnPreview, on_step: OnStep | None = None
) -> OnStep:
    """Return an on_step for `denoise` that hands each estimate to on_preview.

    Args:
        decode: Makes frames, uint8 [F, H, W, 3], of latents, float32 [1, C, F, h, w].
        on_preview: Called after each step that has an estimate.
        on_step: Called after on_preview, or after a step without an estimate; its answer counts.
    """

    def step(info: StepInfo) -> bool | None:
        denoised = info.denoised
        if denoised is not None:
            on_preview(PreviewInfo(info.step_index, info.num_steps, denoised, decode))
        return None if on_step is None else on_step(info)

    return step


def open_preview(kind: PreviewKind, output: str, *, force: bool = False) -> OnPreview:
    """Return what shows the previews of one video, checked before the work.

    Args:
        kind: "file" keeps a picture beside the output, "terminal" draws on stderr.
        output: Where the video will be written.
        force: Whether a picture that is there already may be replaced.

    Raises:
        OutputError: The picture cannot be written, or stderr is no terminal with colours.
    """
    if kind == "terminal":
        return TerminalPreview()
    return PicturePreview(make_preview_path(output), force=force)


def make_preview_path(output: str) -> Path:
    """Return where the picture of a video's previews goes: `out.mp4.preview.png`."""
    path = Path(output)
    return path.with_name(f"{path.name}.preview.png")


class PicturePreview:
    """Keeps one picture file up to date: the frame, or some of the frames on one sheet.

    The file is replaced as a whole, so that an image viewer that reloads never sees half of one.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Check that the picture can be written; raises `OutputError`."""
        self.path = path
        check_writable(path)
        check_replaceable(path, force=force, is_ours=lambda _: False)
        if path.is_dir():
            raise OutputError(f"{path} is a folder: use another name")

    def __call__(self, info: PreviewInfo) -> None:
        """Replace the picture."""
        from PIL import Image

        sheet = make_contact_sheet(info.decode_frames(choose_frames(info.num_frames)))
        with new_file(self.path) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG")


class TerminalPreview:
    """Draws the middle frame on a terminal with 24-bit colours, over the one before."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Check that the stream can show it; None is stderr. Raises `OutputError`."""
        self._stream = sys.stderr if stream is None else stream
        self._num_lines = 0
        _check_terminal(self._stream)

    def __call__(self, info: PreviewInfo) -> None:
        """Draw; the cursor is left below, on an empty line for the progress bar."""
        columns, lines = _find_terminal_size(self._stream)
        # One line stays for the bar, one spare; terminals differ in what follows a full line.
        columns, lines = max(1, columns - 1), max(1, min(MAX_TERMINAL_LINES, lines - 2))
        (frame,) = info.decode_frames([info.num_frames // 2])
        drawn = draw_frame(frame, columns=columns, lines=lines)
        up = f"\x1b[{self._num_lines}A" if self._num_lines else ""
        text = "".join(f"{line}\x1b[K\n" for line in drawn)
        # Up from the bar's line, which is cleared, as is what a taller frame left below.
        self._stream.write(f"\r\x1b[2K{up}{text}\x1b[J")
        self._stream.flush()
        self._num_lines = len(drawn)


def choose_frames(num_frames: int) -> list[int]:
    """Return the indices of up to 8 frames, evenly spaced, with the first and the last."""
    count = min(num_frames, MAX_SHEET_FRAMES)
    return [round(index) for index in np.linspace(0, num_frames - 1, count).tolist()]


def make_contact_sheet(frames: Frames) -> Frames:
    """Return frames, uint8 [N, H, W, 3], in one picture, row by row: a new uint8 [H, W, 3]."""
    count, height, width, _ = frames.shape
    num_rows = math.ceil(count / MAX_SHEET_ROW)
    in_row = math.ceil(count / num_rows)
    pitch = (height + SHEET_GAP, width + SHEET_GAP)
    sheet = np.zeros((num_rows * pitch[0], in_row * pitch[1], 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // in_row * pitch[0], index % in_row * pitch[1]
        sheet[top : top + height, left : left + width] = frame
    return sheet[:-SHEET_GAP, :-SHEET_GAP]


def draw_frame(frame: Frames, *, columns: int, lines: int) -> list[str]:
    """Return a frame, uint8 [H, W, 3], as lines of text with ANSI colours, two pixels a letter."""
    from PIL import Image

    height, width, _ = frame.shape
    scale = min(1.0, columns / width, 2 * lines / height)
    size = (max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2))
    image = Image.fromarray(frame).resize(size, Image.Resampling.BOX)
    pixels = np.asarray(image).reshape(size[1] // 2, 2, size[0], 3)
    return [
        "".join(_draw_pair(top, bottom) for top, bottom in zip(*pair, strict=True)) + "\x1b[0m"
        for pair in pixels
    ]


def _draw_pair(top: Frames, bottom: Frames) -> str:
    """One letter with two colours, each uint8 [3]."""
    front, back = (";".join(map(str, colour.tolist())) for colour in (top, bottom))
    return f"\x1b[38;2;{front};48;2;{back}m{HALF_BLOCK}"


def _check_terminal(stream: TextIO) -> None:
    """Raise `OutputError` unless the stream shows 24-bit colours and half blocks."""
    way_out = "use --preview for a picture file"
    if not stream.isatty():
        raise OutputError(f"a preview cannot be drawn, since stderr is no terminal: {way_out}")
    colours = os.environ.get("COLORTERM", "")
    if colours.lower() not in TRUECOLOR_NAMES:
        raise OutputError(
            f"COLORTERM is {colours!r}, so the terminal may not show 24-bit colours: {way_out}, or "
            "set COLORTERM=truecolor if it does"
        )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        HALF_BLOCK.encode(encoding)
    except UnicodeEncodeError as err:
        raise OutputError(
            f"a preview cannot be drawn in the encoding {encoding} of stderr: {way_out}, or set "
            "PYTHONIOENCODING=utf-8"
        ) from err


def _find_terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal behind a stream."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # one that is no file of the system, as in a notebook
        return 80, 24
    # Some report 0 by 0, for example a serial line.
    return size.columns or 80, size.lines or 24
