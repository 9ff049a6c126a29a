import json
import re
from pathlib import Path
from typing import Any

import pytest

from mutoscope.engines.engine import Engine
from mutoscope.engines.onnxruntime_build import make_build_key
from mutoscope.runtime import components, main
from mutoscope.runtime.engine_choice import FoundGraph, open_found
from tests.runtime.conftest import RunCli

COMPONENTS = ["text_encoder", "unet", "vae_decoder"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


def build(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("build", *arguments, "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def list_built(bundle: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in bundle.glob("engines/*/*/model.onnx")}


def test_build_builds_all_and_generate_makes_the_same_video_of_it(
    own_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []

    def open_and_note(found: FoundGraph) -> Engine:
        opened.append((found.path.parent.name.partition("-")[0], found.is_built))
        return open_found(found)

    videos = [tmp_path / name for name in ("before.npy", "after.npy", "low.npy")]
    for path in videos:
        memory = "low" if path.stem == "low" else "normal"
        options = ["--bundle", own_bundle, "--seed", 1, "--memory", memory, "-o", path]
        assert run("generate", "a red circle", *options) == 0
        if path.stem == "before":
            result = build(capsys, own_bundle)
            monkeypatch.setattr(components, "open_found", open_and_note)
    assert set(opened) == {(name, True) for name in COMPONENTS}
    assert len({path.read_bytes() for path in videos}) == 1
    assert [record["component"] for record in result["built"]] == COMPONENTS
    for record in result["built"]:
        assert Path(record["folder"]).parent == own_bundle / "engines" / make_build_key()
        assert record["size_bytes"] > sum(record["files"].values())
        assert record["load"]["max_relative_error"] <= 1e-5


def test_build_says_what_loading_took_before_and_after(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", own_bundle, "--component", "unet") == 0
    title, row = capsys.readouterr().out.splitlines()
    assert title.split() == ["component", "variant", "size", "load", "before", "after", "folder"]
    assert re.fullmatch(r"unet +float32 +[\d.]+ kB +[\d.]+ s +[\d.]+ s  (.*)", row)
    (built,) = list_built(own_bundle)
    assert row.endswith(str(built.parent))


def test_build_leaves_what_is_there_unless_it_is_forced(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(capsys, own_bundle, "--component", "unet")
    first = list_built(own_bundle)
    assert len(build(capsys, own_bundle)["built"]) == len(COMPONENTS)
    both = list_built(own_bundle)
    assert first.items() < both.items()
    build(capsys, own_bundle, "--force")
    assert list_built(own_bundle).keys() == both.keys()
    assert not list_built(own_bundle).items() & both.items()


def test_remove_removes_what_was_built_and_nothing_else(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(own_bundle.rglob("*"))
    built = build(capsys, own_bundle)["built"]
    removed = build(capsys, own_bundle, "--remove", "--component", "unet")["removed"]
    assert removed == [record["folder"] for record in built if record["component"] == "unet"]
    assert len(build(capsys, own_bundle, "--remove")["removed"]) == len(COMPONENTS) - 1
    assert sorted(own_bundle.rglob("*")) == before
    assert run("build", own_bundle, "--remove") == 0
    assert capsys.readouterr().out == "nothing was built\n"


def test_inspect_lists_what_was_built(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def list_lines() -> list[str]:
        capsys.readouterr()
        assert run("inspect", own_bundle) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "    built: " in line]

    assert list_lines() == []
    (record,) = build(capsys, own_bundle, "--component", "unet")["built"]
    (line,) = list_lines()
    assert "used on this machine's CPU" in line
    assert line.endswith(record["folder"])
    Path(record["folder"], "model.onnx").unlink()
    (line,) = list_lines()
    assert "not used (" in line


def test_verify_takes_what_was_built_for_no_stray_files(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(capsys, own_bundle)
    (own_bundle / "notes.txt").write_text("stray")
    assert run("verify", own_bundle) == 0
    assert "never read: notes.txt\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--component", "vae"], 1, "this bundle has no vae; it has text_encoder, unet, vae_deco"),
        (["--engine", "torch"], 2, "'torch' is not"),
        (["--force", "--remove"], 2, "use one of them"),
    ],
)
def test_build_refuses_what_it_cannot_do(
    own_bundle: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("build", own_bundle, *arguments) == code
    assert message in capsys.readouterr().err
    assert not (own_bundle / "engines").exists()


def test_generate_says_once_that_what_was_built_does_not_fit(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_cli: RunCli
) -> None:
    for record in build(capsys, own_bundle)["built"]:
        Path(record["folder"], "model.onnx").write_bytes(b"")
    options = ["--bundle", own_bundle, "--seed", "1", "-o", tmp_path / "out.npy"]
    error = run_cli("generate", "a red circle", *options).stderr
    note, rest = error.splitlines()
    assert note.startswith("text_encoder is loaded as it was exported: what was built")
    assert note.endswith(f"mutoscope build {own_bundle}")
    assert rest.startswith(str(tmp_path / "out.npy"))
