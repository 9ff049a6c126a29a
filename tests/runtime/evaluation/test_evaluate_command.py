import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutoscope.runtime import clip_files, main
from mutoscope.runtime.clip_files import load_clip
from mutoscope.runtime.evaluation import consistency
from mutoscope.runtime.video import Video
from tests.runtime.evaluation.defects import alternate, draw, name_clip

LEVELS = 8
FIGURES = {"flicker", "warping_error", "colour_drift", "area_drift", "shape_drift"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a still clip, one that flickers, and files that are none."""
    monkeypatch.chdir(tmp_path)
    frames = draw(name_clip())
    Video(frames, 8.0).save("still.npy")
    Video(alternate(frames, LEVELS), 8.0).save("flickers.npy")
    Video(frames[:1], 8.0).save("one.png")
    Path("broken.mp4").write_bytes(b"no video")
    return tmp_path


def run(*arguments: object) -> int:
    return main.run(["evaluate", *map(str, arguments)])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object):
    code = run(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_a_table_has_a_row_for_each_clip_and_their_mean(here, capsys) -> None:
    assert run("still.npy", "flickers.npy") == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:4]] == ["clip", "frames", "flicker"]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows]
    assert cells == [
        ["still.npy", "16", "0.00"],
        ["flickers.npy", "16", "8.00"],
        ["mean", "", "4.00"],
    ]


def test_one_clip_has_no_mean(here, capsys) -> None:
    assert run("still.npy") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_json_has_every_figure(here, capsys) -> None:
    code, result = run_json(capsys, "still.npy", "flickers.npy")
    assert code == 0
    still, flickers = result["clips"]
    assert flickers["flicker"] == pytest.approx(LEVELS, abs=0.1)
    assert still["drift"]["colour"] < 0.5
    assert still["num_frames"] == 16
    assert set(result["mean"]) == FIGURES
    assert "pairs" not in still
    assert result["failed"] == {}


def test_pairs_are_listed_on_request(here, capsys) -> None:
    _, result = run_json(capsys, "flickers.npy", "--pairs")
    pairs = result["clips"][0]["pairs"]
    assert {len(values) for values in pairs.values()} == {15}
    assert {"flicker", "warping_error", "colour_step", "motion_jump"} <= set(pairs)


def test_a_clip_that_cannot_be_read_does_not_lose_the_others(here, capsys) -> None:
    code = run("broken.mp4", "still.npy", "one.png", "absent.gif", "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert code == 1
    assert [clip["path"] for clip in result["clips"]] == ["still.npy"]
    assert set(result["failed"]) == {"broken.mp4", "one.png", "absent.gif"}
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    assert lines[-1] == ("error: 3 of 4 clips cannot be measured: broken.mp4, one.png, absent.gif")


def test_a_clip_that_memory_does_not_hold_does_not_lose_the_others(
    here, capsys, monkeypatch
) -> None:
    measure = consistency.measure_consistency

    def measure_small(frames: np.ndarray) -> consistency.Consistency:
        if len(frames) > 16:
            raise MemoryError
        return measure(frames)

    monkeypatch.setattr(consistency, "measure_consistency", measure_small)
    frames = draw(name_clip())
    Video(np.concatenate([frames, frames]), 8.0).save("large.npy")
    saved = Path("still.npy").read_bytes()
    said, lie = b"(16, 64, 64, 3), }           ", b"(99999999999, 64, 64, 3), }  "
    Path("lies.npy").write_bytes(saved.replace(said, lie))
    code, result = run_json(capsys, "lies.npy", "still.npy", "large.npy")
    assert code == 1
    assert [clip["path"] for clip in result["clips"]] == ["still.npy"]
    assert result["failed"]["large.npy"] == (
        "large.npy: to measure 32 frames of 64 x 64 needs more memory than there is: use a shorter "
        "or smaller clip"
    )
    assert "lies.npy holds " in result["failed"]["lies.npy"]


def test_the_frames_of_one_clip_are_held_at_a_time(here, capsys, monkeypatch) -> None:
    seen: list[weakref.ref[np.ndarray]] = []
    held: list[int] = []

    def load(path: str) -> np.ndarray:
        held.append(sum(reference() is not None for reference in seen))
        frames = load_clip(path)
        seen.append(weakref.ref(frames))
        return frames

    monkeypatch.setattr(clip_files, "load_clip", load)
    for options in ((), ("--save-plot", "plot.png")):
        assert run("still.npy", "flickers.npy", "still.npy", *options) == 0
    assert held == [0] * 6


def test_where_no_clip_can_be_read_json_is_still_one_object(here, capsys) -> None:
    code, result = run_json(capsys, "broken.mp4", "one.png")
    assert code == 1
    assert result["clips"] == []
    assert result["mean"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.png"], "one.png: the clip has 1 frame; what changes over time needs at least 2"),
        (["still.npy", "--joins", "16"], "still.npy: joins has 16; a join is the first frame"),
        (["still.npy", "--context-length", "16"], "context_length is 16; it must be from 1 to 15"),
        (["still.npy", "--save-plot", "plot.jpg"], "plot.jpg has an unknown ending for a plot"),
        (["still.npy", "--save-plot", "one.png"], "one.png exists: use --force"),
        (["still.npy", "--save-plot", "no/plot.png"], "there is no folder no"),
        (["still.npy", "--reference", "broken.mp4"], "broken.mp4 cannot be read"),
        (["still.npy", "--reference", "one.png"], "the reference 1 frames of 64 x 64"),
    ],
)
def test_errors_are_one_line(here, capsys, arguments, message) -> None:
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'CLIP...'"),
        (["x", "--joins", "a"], "'a' is not a list of frames: use 16,32"),
        (["x", "--joins", "8", "--context-length", "8"], "both name the joins: give one"),
        (["x", "--context-stride", "8"], "--context-stride needs --context-length"),
        (["x", "--pairs"], "--pairs needs --json"),
    ],
)
def test_wrong_usage_is_exit_code_2(here, capsys, arguments, message) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_reference_adds_psnr_and_ssim(here, capsys) -> None:
    _, result = run_json(capsys, "still.npy", "flickers.npy", "--reference", "still.npy")
    still, flickers = result["clips"]
    assert still["psnr_db"] == 200.0
    assert still["ssim"] == pytest.approx(1.0)
    # Half of the frames are 8 levels off.
    assert flickers["psnr_db"] == pytest.approx(20 * np.log10(255 / LEVELS) + 3.01, abs=0.2)
    assert run("still.npy", "--reference", "still.npy") == 0
    assert "PSNR, dB" in capsys.readouterr().out


def test_the_mean_psnr_is_that_of_the_mean_squared_error(here, capsys) -> None:
    _, one = run_json(capsys, "flickers.npy", "--reference", "still.npy")
    _, both = run_json(capsys, "still.npy", "flickers.npy", "--reference", "still.npy")
    # Half of the error, not the middle between 200 dB and 33 dB.
    assert both["mean"]["psnr_db"] == pytest.approx(one["mean"]["psnr_db"] + 3.01, abs=0.01)
    _, equal = run_json(capsys, "still.npy", "still.npy", "--reference", "still.npy")
    assert equal["mean"]["psnr_db"] == pytest.approx(200.0)


def test_joins_are_compared_with_the_rest(here, capsys) -> None:
    frames = draw(name_clip()).copy()
    frames[4:8] += 9
    frames[12:] += 9
    frames[1] += 1
    Video(frames, 8.0).save("joined.npy")
    _, result = run_json(capsys, "joined.npy", "--joins", "12,4,8")
    joins = result["clips"][0]["joins"]
    assert joins["frames"] == [4, 8, 12]
    assert joins["flicker"]["at_joins"] == pytest.approx(9, abs=0.1)
    assert joins["flicker"]["ratio"] > 10
    assert (joins["flicker"]["num_pairs_at_joins"], joins["flicker"]["num_pairs_elsewhere"]) == (
        3,
        12,
    )
    assert result["mean"]["joins"]["flicker"] == joins["flicker"]
    assert run("joined.npy", "--context-length", "4", "--context-stride", "4") == 0
    table = capsys.readouterr().out.split("\n\n")[1]
    assert table.startswith("| at joins / elsewhere | flicker |")
    ratio = float(table.splitlines()[2].split("|")[2])
    assert ratio == pytest.approx(joins["flicker"]["ratio"], abs=0.01)


def test_a_plot_shows_flicker_where_it_is(here, capsys) -> None:
    assert run("flickers.npy", "still.npy", "--save-plot", "plot.png", "--joins", "8") == 0
    assert "plot.png" in capsys.readouterr().err
    with Image.open("plot.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (np.abs(pixels - (70, 110, 180)).sum(axis=-1) == 0).sum(axis=1)
    upper, lower = np.array_split(blue, 2)
    assert upper.sum() > 10000
    assert lower.sum() < 1000
    assert run("still.npy", "--save-plot", "plot.png") == 1
    assert run("still.npy", "--save-plot", "plot.png", "--force") == 0


def test_without_opencv_the_command_says_what_to_install_and_still_has_help(here) -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from mutoscope.runtime.main import run\n"
        "assert run(['evaluate', '--help']) == 0\n"
        "sys.exit(run(['evaluate', 'still.npy']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: this command needs cv2, which is not installed: pip install 'mutoscope[evaluate]'\n"
    )


def test_the_help_names_the_extra_once(capsys) -> None:
    assert run("--help") == 0
    assert capsys.readouterr().out.count("mutoscope[evaluate]") == 1


def test_nothing_but_the_command_loads_opencv() -> None:
    code = (
        "import sys, pkgutil, importlib, mutoscope.runtime as runtime\n"
        "for module in pkgutil.iter_modules(runtime.__path__):\n"
        "    if not module.ispkg:\n"
        "        importlib.import_module('mutoscope.runtime.' + module.name)\n"
        "assert 'cv2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
