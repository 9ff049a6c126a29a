"""The benchmarks that record figures: what they measure, fit and write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against_peers, document, scaling
from benchmarks.process_memory import run_measured
from mutoscope.runtime.benchmarks.records import Results, Row, Seconds
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.json_records import write_record

ALLOCATED = 2**27
MACHINE = {"machine": "m", "cores": 2, "python": "3.11"}
# Least squares in float64.
FIT_ERROR = 1e-9


def make_points(bundle: Bundle) -> list[dict[str, Any]]:
    """Points whose time is linear in steps and frames, and that of pixels to the power of 1.5."""
    return [
        {
            **point,
            "seconds_denoiser": point["num_inference_steps"]
            * (1 + point["num_frames"])
            * point["height"] ** 3
            * 1e-6,
            "seconds_total": 1.0,
            "peak_rss_bytes": 2**30,
            "peak_anonymous_bytes": None,
        }
        for point in scaling.list_points(bundle)
    ]


def test_points_are_within_the_limits_of_the_bundle_and_vary_one_thing() -> None:
    bundle = Bundle.default()
    points = scaling.list_points(bundle)
    limits = bundle.manifest.limits
    for point in points:
        limits.num_frames.check("num_frames", point["num_frames"])
        limits.height.check("height", point["height"])
        limits.width.check("width", point["width"])
        bundle.find_schedule("ddim", point["num_inference_steps"])
    for varied, others in (
        ("num_inference_steps", ("num_frames", "height", "width")),
        ("num_frames", ("num_inference_steps", "height", "width")),
        ("height", ("num_inference_steps", "num_frames")),
    ):
        found = [point for point in points if point["varied"] == varied]
        assert len({point[varied] for point in found}) == len(found) >= 4
        assert len({tuple(point[name] for name in others) for point in found}) == 1


def test_fits_find_the_line_and_the_power() -> None:
    fits = scaling.fit_points(make_points(Bundle.default()))
    assert fits["num_inference_steps"]["largest_deviation"] < FIT_ERROR
    assert fits["num_inference_steps"]["slope"] == pytest.approx(17 * 64**3 * 1e-6)
    assert fits["num_frames"]["start"] == pytest.approx(fits["num_frames"]["slope"])
    assert fits["height"]["exponent"] == pytest.approx(1.5)
    assert scaling.fit_line([1, 2, 3], [1, 2, 4])["largest_deviation"] > 0.1


def test_the_median_of_each_figure_is_kept() -> None:
    runs = [dict.fromkeys(scaling.FIGURES, value) for value in (1, 5, 2)]
    assert scaling.summarize(runs) == dict.fromkeys(scaling.FIGURES, 2)
    assert scaling.summarize([dict.fromkeys(scaling.FIGURES)]) == dict.fromkeys(scaling.FIGURES)


def test_a_point_is_a_clip_in_a_process_of_its_own(tmp_path: Path) -> None:
    bundle = Bundle.default()
    point = {"num_inference_steps": 1, "num_frames": 2, "height": 16, "width": 16}
    output = tmp_path / "clip.npy"
    figures = scaling.measure_point(bundle, point, "onnxruntime", output)
    assert output.is_file()
    assert set(figures) == set(scaling.FIGURES)
    assert 0 < figures["seconds_denoiser"] < figures["seconds_total"]
    if sys.platform == "linux":
        assert figures["peak_rss_bytes"] > figures["peak_anonymous_bytes"] > 2**20


def test_the_plot_shows_time_and_memory_and_is_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = make_points(Bundle.default())
    for name in ("a.svg", "b.svg"):
        scaling.plot_points(points, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.startswith("<?xml")
    assert drawn == (tmp_path / "b.svg").read_text()


@pytest.mark.parametrize("path", document.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_shows_the_recorded_figures_as_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == document.fill_document(text), "run python -m benchmarks.document"


def test_tables_are_made_anew_from_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    monkeypatch.setattr(against_peers, "RESULTS", tmp_path)
    seconds = Seconds(2.0, 1.0, 5)
    row = Row("unet", "diffusers", {}, seconds, 3.0, seconds, 2**20, 2**20, ratio=1.0)
    results = Results(MACHINE, "b", "f", 16, 64, 64, 2, (row,))
    against_peers.save_result("against-peers", "b", write_record(results))
    points = make_points(Bundle.default())
    record = {"machine": MACHINE, "bundle": "b", "engine": "onnxruntime", "count": 3}
    fits = scaling.fit_points(points)
    against_peers.save_result("scaling", "b", {**record, "points": points, "fits": fits})
    parts = ("against-peers-b", "scaling-b", "against-peers-none")
    text = "\n".join(f"<!-- results: {name} -->\nold\n<!-- end -->" for name in parts)
    filled = document.fill_document(text)
    assert "old" not in filled
    assert "| diffusers | 2.00 s |    3.00 s |      2.00 s |  1.00 s |" in filled
    assert "within 0.0% of a straight line" in filled
    assert "pixels to the power of 1.50" in filled
    assert "1024 MiB | - |" in filled
    assert filled.endswith("<!-- results: against-peers-none -->\n<!-- end -->")
    assert document.fill_document(filled) == filled


def test_peers_are_measured_with_one_command_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*arguments: str | Path) -> str:
        commands.append(tuple(map(str, arguments)))
        if arguments[0] == "export":
            shutil.copytree(DEFAULT_BUNDLE_PATH, arguments[3])
        failures = ["of the last"] if len(commands) == 5 else []
        return json.dumps({"answer": len(commands), "failures": failures})

    monkeypatch.setattr(against_peers, "run_mutoscope", run)
    monkeypatch.setattr(against_peers, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(against_peers, "write_documents", lambda: None)
    monkeypatch.setattr(against_peers.checkpoints, "main", lambda arguments: 0)
    assert against_peers.main(["--folder", str(tmp_path)]) == 1
    assert [command[0] for command in commands] == ["export", "bench"] * 2 + ["bench"]
    for command in commands:
        if command[0] == "bench":
            assert ",".join(against_peers.PEERS) in command
            assert ",".join(against_peers.ENGINES) in command
    record = json.loads((tmp_path / "results" / "against-peers-moving-shapes.json").read_text())
    assert record == {"answer": 5, "failures": ["of the last"]}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_is_measured_to_its_end() -> None:
    code = f"import time; x = bytearray({ALLOCATED}); time.sleep(0.1); print('done')"
    measured = run_measured([sys.executable, "-c", code])
    assert measured.stdout == "done\n"
    assert measured.seconds > 0.1
    for peak in (measured.peak_rss_bytes, measured.peak_anonymous_bytes):
        assert peak is not None
        assert peak > ALLOCATED
    with pytest.raises(subprocess.CalledProcessError):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_command_that_writes_nothing_has_failed() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        against_peers.run_mutoscope("inspect", "/nowhere")
    assert json.loads(against_peers.run_mutoscope("inspect", DEFAULT_BUNDLE_PATH, "--json"))
