"""Previews: what is shown after each step, where, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import CancelledError, OutputError, ParameterError, ScheduleError
from mutoscope.runtime.preview import (
    HALF_BLOCK,
    PicturePreview,
    PreviewInfo,
    TerminalPreview,
    check_preview,
    choose_frames,
    draw_frame,
    make_contact_sheet,
    make_preview_path,
    make_preview_step,
    open_preview,
)
from mutoscope.runtime.sampler import F32, OnStep, StepInfo, denoise
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable, ScheduleUpdate
from mutoscope.runtime.timings import Timings

SHAPE = (1, 4, 5, 3, 6)
HALVE = (ScheduleUpdate(0, ((0, 0.5), ("model_output", -1.0))),)
PAIRS: tuple[Any, ...] = (None, (2.0, -1.0), (1.5, -0.5))
COLOUR = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m" + HALF_BLOCK)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def make_table(pairs: tuple[Any, ...] = PAIRS) -> ScheduleTable:
    rows = tuple(
        ScheduleRow(float(900 - index), 1.0, 0, HALVE, pair) for index, pair in enumerate(pairs)
    )
    return ScheduleTable("Made", len(rows), "epsilon", 1.0, 1, rows)


def make_frames(num_frames: int, height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    random = np.random.default_rng(num_frames)
    return random.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def make_info(num_frames: int = 5, **sizes: int) -> PreviewInfo:
    """One whose latents are the frames themselves."""
    frames = make_frames(num_frames, **sizes)
    latents = frames.transpose(3, 0, 1, 2)[np.newaxis].astype(np.float32)
    return PreviewInfo(0, 3, latents, lambda part: part[0].transpose(1, 2, 3, 0).astype(np.uint8))


def run(on_step: OnStep | None) -> F32:
    latents = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    return denoise(latents, make_table(), lambda sample, _: np.sin(3 * sample), on_step=on_step)


def decode_plainly(latents: F32) -> NDArray[np.uint8]:
    """A decoder of one line: the first three channels as colours."""
    return (128 + 40 * latents[0, :3].transpose(1, 2, 3, 0)).clip(0, 255).astype(np.uint8)


def test_each_step_with_an_estimate_is_shown_and_then_reported() -> None:
    events: list[tuple[str, int]] = []
    estimates: list[F32 | None] = []

    def on_step(info: StepInfo) -> None:
        events.append(("step", info.step_index))
        estimates.append(info.denoised)

    shown: list[PreviewInfo] = []

    def on_preview(info: PreviewInfo) -> None:
        events.append(("preview", info.step_index))
        shown.append(info)

    run(make_preview_step(decode_plainly, on_preview, on_step))
    assert events == [("step", 0), ("preview", 1), ("step", 1), ("preview", 2), ("step", 2)]
    for info, estimate in zip(shown, estimates[1:], strict=True):
        assert estimate is not None
        np.testing.assert_array_equal(info.frames, decode_plainly(estimate))
        assert info.num_steps == 3


def test_previews_do_not_change_the_result() -> None:
    seen: list[PreviewInfo] = []
    with_previews = run(make_preview_step(decode_plainly, seen.append))
    assert len(seen) == 2
    np.testing.assert_array_equal(with_previews, run(None))


def test_on_step_can_cancel_behind_previews() -> None:
    seen: list[PreviewInfo] = []
    step = make_preview_step(decode_plainly, seen.append, lambda info: info.step_index < 1)
    with pytest.raises(CancelledError, match="cancelled after step 2 of 3"):
        run(step)
    assert [info.step_index for info in seen] == [1]


def test_an_estimate_can_be_decoded_by_a_graph(bundle_path: Path) -> None:
    components = Components(Bundle.open(bundle_path), EngineOptions(num_threads=1))
    timings, seen = Timings(), list[PreviewInfo]()

    def decode(latents: F32) -> NDArray[np.uint8]:
        frames = components.run("vae_decoder", timings, {"latents": latents})[0]
        return np.asarray(frames, dtype=np.uint8)

    run(make_preview_step(decode, seen.append))
    assert [info.frames.shape for info in seen] == [(5, 24, 48, 3)] * 2
    assert seen[0].frames.std() > 1
    np.testing.assert_array_equal(seen[0].decode_frames([3, 1]), seen[0].frames[[3, 1]])


def test_only_the_frames_that_are_asked_for_are_decoded() -> None:
    decoded: list[F32] = []

    def decode(latents: F32) -> NDArray[np.uint8]:
        decoded.append(latents)
        return decode_plainly(latents)

    def on_preview(info: PreviewInfo) -> None:
        some = info.decode_frames([4, 1])
        assert [part.shape for part in decoded] == [(1, 4, 2, 3, 6)]
        np.testing.assert_array_equal(some, decode_plainly(info.denoised)[[4, 1]])
        decoded.clear()

    run(make_preview_step(decode, on_preview))
    seen: list[PreviewInfo] = []
    run(make_preview_step(decode, seen.append))
    assert not decoded
    assert seen[0].frames is seen[0].frames
    assert len(decoded) == 1


def test_a_bundle_with_both_decoders_and_estimates_can_show_previews() -> None:
    check_preview(("unet", "vae_decoder", "preview_decoder"), make_table())


def test_a_bundle_without_a_preview_decoder_says_how_to_get_one() -> None:
    with pytest.raises(ParameterError, match=r"no preview_decoder.*export it with --preview-vae"):
        check_preview(("unet", "vae_decoder"), make_table())


def test_a_table_without_estimates_is_refused_before_the_work() -> None:
    table = make_table((None, None))
    with pytest.raises(
        ScheduleError, match=r"schedule table of Made tells no estimates.*export ag"
    ):
        check_preview(("unet", "vae_decoder", "preview_decoder"), table)


@pytest.mark.parametrize(
    ("num_frames", "chosen"),
    [
        (1, [0]),
        (2, [0, 1]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (15, [0, 2, 4, 6, 8, 10, 12, 14]),
        (16, [0, 2, 4, 6, 9, 11, 13, 15]),
    ],
)
def test_up_to_eight_frames_are_chosen_evenly(num_frames: int, chosen: list[int]) -> None:
    assert choose_frames(num_frames) == chosen


@pytest.mark.parametrize(
    ("num_frames", "size", "places"),
    [
        (1, (4, 6), {0: (0, 0)}),
        (4, (4, 30), {0: (0, 0), 3: (0, 24)}),
        (5, (10, 22), {0: (0, 0), 2: (0, 16), 4: (6, 8)}),
        (8, (10, 30), {3: (0, 24), 7: (6, 24)}),
    ],
)
def test_a_sheet_shows_frames_row_by_row(
    num_frames: int, size: tuple[int, int], places: dict[int, tuple[int, int]]
) -> None:
    frames = make_frames(num_frames)
    sheet = make_contact_sheet(frames)
    assert sheet.shape == (*size, 3)
    for index, (top, left) in places.items():
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], frames[index])


def test_the_picture_is_replaced_at_each_step_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4.preview.png"
    preview = PicturePreview(path)
    assert not path.exists()
    for num_frames in (6, 1):
        info = make_info(num_frames)
        preview(info)
        with Image.open(path) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), make_contact_sheet(info.frames))
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_picture_stands_beside_the_output() -> None:
    assert make_preview_path("clips/out.mp4") == Path("clips/out.mp4.preview.png")
    assert make_preview_path("frames/") == Path("frames.preview.png")


def test_a_picture_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    output = str(tmp_path / "out.mp4")
    make_preview_path(output).write_text("mine")
    with pytest.raises(OutputError, match=r"out\.mp4\.preview\.png exists: use --force"):
        open_preview("file", output)
    open_preview("file", output, force=True)(make_info())
    with Image.open(make_preview_path(output)) as image:
        assert image.size == (22, 10)


def test_a_picture_cannot_stand_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        open_preview("file", str(tmp_path / "absent" / "out.mp4"))


def test_a_folder_of_the_name_of_the_picture_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.mp4.preview.png").mkdir()
    with pytest.raises(OutputError, match=r"preview\.png is a folder: use another name"):
        open_preview("file", str(tmp_path / "out.mp4"), force=True)


def test_a_letter_has_the_colours_of_two_pixels() -> None:
    frame = make_frames(1, height=4, width=3)[0]
    lines = draw_frame(frame, columns=80, lines=24)
    assert len(lines) == 2
    for index, line in enumerate(lines):
        colours = np.array([list(map(int, found)) for found in COLOUR.findall(line)])
        np.testing.assert_array_equal(colours[:, :3], frame[2 * index])
        np.testing.assert_array_equal(colours[:, 3:], frame[2 * index + 1])
        assert line.endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("height", "width", "columns", "lines", "expected"),
    [
        (512, 512, 80, 24, (24, 48)),
        (256, 1024, 80, 24, (10, 80)),
        (1024, 64, 80, 24, (24, 3)),
        (1, 1, 80, 24, (1, 1)),
        (64, 64, 10, 1, (1, 2)),
    ],
)
def test_a_frame_is_made_to_fit(
    height: int, width: int, columns: int, lines: int, expected: tuple[int, int]
) -> None:
    drawn = draw_frame(make_frames(1, height, width)[0], columns=columns, lines=lines)
    assert (len(drawn), drawn[0].count(HALF_BLOCK)) == expected


def test_the_terminal_shows_the_middle_frame_over_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    stream, info = Terminal(), make_info(5)
    preview = TerminalPreview(stream)
    preview(info)
    first = stream.getvalue()
    assert "\x1b[2A" not in first
    preview(info)
    second = stream.getvalue()[len(first) :]
    assert second.startswith("\r\x1b[2K\x1b[2A")
    colours = [int(value) for value in COLOUR.findall(second)[0]]
    assert colours == [*info.frames[2][0, 0].tolist(), *info.frames[2][1, 0].tolist()]
    for text in (first, second):
        assert text.count("\n") == 2
        assert text.endswith("\n\x1b[J")


def test_a_large_frame_leaves_the_last_column_and_two_lines_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    wide, tall = Terminal(), Terminal()  # of 80 columns and 24 lines, as nobody says otherwise
    TerminalPreview(wide)(make_info(1, height=40, width=200))
    assert {line.count(HALF_BLOCK) for line in wide.getvalue().split("\n")[:-1]} == {79}
    TerminalPreview(tall)(make_info(1, height=90, width=20))
    assert tall.getvalue().count("\n") == 22


@pytest.mark.parametrize("colours", ["", "yes", "256color"])
def test_a_terminal_without_24_bit_colours_is_refused(
    colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORTERM", colours)
    with pytest.raises(
        OutputError, match=rf"COLORTERM is '{colours}'.*use --preview for a picture"
    ):
        TerminalPreview(Terminal())


def test_what_is_no_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    with pytest.raises(OutputError, match="stderr is no terminal: use --preview for a picture"):
        TerminalPreview(io.StringIO())


def test_a_terminal_that_cannot_spell_half_blocks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLORTERM", "24bit")
    stream = Terminal()
    stream.encoding = "latin-1"
    with pytest.raises(OutputError, match=r"encoding latin-1 of stderr.*PYTHONIOENCODING=utf-8"):
        TerminalPreview(stream)


def test_the_kinds_of_preview_are_opened_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(open_preview("terminal", "out.mp4"), TerminalPreview)
    assert isinstance(open_preview("file", str(tmp_path / "out.mp4")), PicturePreview)


def test_preview_info_is_one_line_without_its_frames() -> None:
    assert repr(make_info()) == "PreviewInfo(step_index=0, num_steps=3)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_info().step_index = 1  # type: ignore[misc]
