import json
import logging
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mutoscope.engines.options import EngineOptions
from mutoscope.runtime import built_engines, onnxruntime_engines
from mutoscope.runtime.built_engines import RECORD_NAME, find_built, remove_built
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.engine_choice import GraphFinder
from mutoscope.runtime.errors import BundleError, EngineError, OutputError, ParameterError
from mutoscope.runtime.onnxruntime_engines import build_for_onnxruntime
from tests.runtime.hand_made_bundle import CHANNELS, write_manifest

FEEDS = {"latents": np.ones((1, CHANNELS, 2, 2, 3), np.float32)}
NAME = "vae_decoder"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mutoscope" / "engines"


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


def find(bundle: Bundle, **options: str) -> tuple[Path, bool]:
    found = GraphFinder(bundle, EngineOptions(**options)).find(NAME)  # type: ignore[arg-type]
    return found.path, found.is_built


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_was_built_lies_in_the_bundle_and_is_found(bundle: Bundle) -> None:
    built = build_for_onnxruntime(bundle, NAME, FEEDS)
    assert built.folder.parent.parent == bundle.path / "engines"
    assert list(find_built(bundle, NAME)) == [built]
    assert find(bundle) == find(bundle, memory="low") == (built.path, True)
    assert built.size_bytes == sum(path.stat().st_size for path in built.folder.iterdir())
    record = built_engines.load_record(built.folder)
    assert (record.component, record.graph) == (NAME, "vae_decoder/model.onnx")


@pytest.mark.parametrize(
    "options", [{"engine": "openvino:f32"}, {"execution_provider": "cuda"}], ids=str
)
def test_what_was_built_is_not_for_other_engines_or_devices(
    bundle: Bundle, options: dict[str, str]
) -> None:
    build_for_onnxruntime(bundle, NAME, FEEDS)
    assert find(bundle, **options) == (bundle.load_graph(NAME), False)


def test_the_graph_for_processors_is_what_is_built(own_bundle: Path) -> None:
    plain = own_bundle / NAME / "model.onnx"
    shutil.copy(plain, plain.with_name("model_cpu.onnx"))
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    cpu_graph = f"{NAME}/model_cpu.onnx"
    manifest["components"][NAME]["cpu_graphs"] = {"float32": cpu_graph}
    write_manifest(own_bundle, manifest)
    built = build_for_onnxruntime(Bundle.open(own_bundle), NAME, FEEDS)
    assert built_engines.load_record(built.folder).graph == cpu_graph


def test_building_again_replaces_what_is_there(bundle: Bundle) -> None:
    first = build_for_onnxruntime(bundle, NAME, FEEDS)
    time = first.path.stat().st_mtime_ns
    assert build_for_onnxruntime(bundle, NAME, FEEDS).folder == first.folder
    assert first.path.stat().st_mtime_ns > time


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("machine", "it was built for onnxruntime-.*; this is onnxruntime-0"),
        ("graph", "it was built of another graph or of other weights"),
        ("size", "has files of other sizes than build.json lists"),
        ("file", "cannot be read"),
        ("record", "cannot be read"),
    ],
)
def test_what_does_not_fit_any_more_is_not_used_and_the_log_says_so_once(
    bundle: Bundle,
    change: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    built = build_for_onnxruntime(bundle, NAME, FEEDS)
    if change == "machine":
        monkeypatch.setattr(built_engines, "make_build_key", lambda: "onnxruntime-0")
    elif change == "graph":
        digest = built.folder.name.rpartition("-")[2]
        built.folder.rename(built.folder.with_name(f"{NAME}-{'0' * len(digest)}"))
    elif change == "size":
        built.path.write_bytes(built.path.read_bytes()[:-1])
    elif change == "file":
        built.path.unlink()
    else:
        (built.folder / RECORD_NAME).write_text("{")
    finder = GraphFinder(bundle, EngineOptions())
    for _ in range(2):
        assert finder.find(NAME).path == bundle.load_graph(NAME)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    (problem,) = [engine.problem for engine in find_built(bundle, NAME)]
    assert problem is not None
    assert problem in record.getMessage()
    assert f"mutoscope build {bundle.path}" in record.getMessage()
    assert re.search(reason, problem)


def test_a_changed_component_has_another_digest(bundle: Bundle, own_bundle: Path) -> None:
    first = build_for_onnxruntime(bundle, NAME, FEEDS)
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    (own_bundle / NAME / "model.onnx.data").write_bytes(b"other weights")
    write_manifest(own_bundle, {**manifest, "files": {}})
    second = build_for_onnxruntime(Bundle.open(own_bundle), NAME, FEEDS)
    assert first.folder != second.folder
    assert find(Bundle.open(own_bundle)) == (second.path, True)


def test_a_bundle_that_cannot_be_written_is_built_in_the_cache(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    built = build_for_onnxruntime(bundle, NAME, FEEDS)
    assert built.folder.parent.parent == cache
    assert not (bundle.path / "engines").exists()
    assert find(bundle) == (built.path, True)
    # What the cache has of other bundles is none of this one's business.
    built.folder.rename(built.folder.with_name(f"{NAME}-{'0' * 16}"))
    assert list(find_built(bundle, NAME)) == []


def test_the_shipped_bundle_is_built_in_the_cache(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built_engines, "DEFAULT_BUNDLE_PATH", bundle.path.resolve())
    assert build_for_onnxruntime(bundle, NAME, FEEDS).folder.is_relative_to(cache)


def test_without_a_home_nothing_is_found_and_building_says_what_to_set(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert not find(bundle)[1]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"no folder for a cache.*: set XDG_CACHE_HOME"):
        build_for_onnxruntime(bundle, NAME, FEEDS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError, OSError])
def test_a_build_that_fails_or_is_interrupted_leaves_nothing(
    bundle: Bundle, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_fail(source: Path, folder: Path, feeds: object) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise error("broken")

    before = list_files(bundle.path)
    monkeypatch.setattr(onnxruntime_engines, "build_graph", write_and_fail)
    with pytest.raises(OutputError if error is OSError else error, match="broken"):
        build_for_onnxruntime(bundle, NAME, FEEDS)
    assert list_files(bundle.path) == before


def test_a_disk_that_is_too_full_is_said_before_the_work(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    before = list_files(bundle.path)
    with pytest.raises(OutputError, match=r"engines has 0 bytes free; building vae_decoder needs"):
        build_for_onnxruntime(bundle, NAME, FEEDS)
    assert list_files(bundle.path) == before


def test_removing_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    before = list_files(bundle.path)
    remove_built(build_for_onnxruntime(bundle, NAME, FEEDS))
    assert list_files(bundle.path) == before


def test_a_component_that_is_not_there_or_damaged_is_not_built(bundle: Bundle) -> None:
    with pytest.raises(ParameterError, match="this bundle has no vae"):
        build_for_onnxruntime(bundle, "vae", FEEDS)
    (bundle.path / NAME / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"vae_decoder/model.onnx has 0 bytes"):
        build_for_onnxruntime(bundle, NAME, FEEDS)
