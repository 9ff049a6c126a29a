"""Each damaged bundle gives the same exception and message in C as in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mutoscope.runtime.errors import BundleError, EngineError, MutoscopeError, ScheduleError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import make_table, write_manifest
from tests.runtime.native.native_bundles import TOKENIZER, read_manifest
from tests.runtime.native.same_errors import catch, check_same

# ---- opening

Damage = Callable[[Path], object]


def change_manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Damage that is in the manifest alone; the digests are as they were."""

    def damage(path: Path) -> None:
        manifest = read_manifest(path)
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damage


def replace_text(old: str, new: str) -> Damage:
    """Damage of the manifest's text."""

    def damage(path: Path) -> None:
        text = (path / "manifest.json").read_text()
        assert old in text
        (path / "manifest.json").write_text(text.replace(old, new))

    return damage


def write_text(data: bytes) -> Damage:
    return lambda path: (path / "manifest.json").write_bytes(data)


def replace_with_link(path: Path) -> None:
    (path / "unet").rename(path.parent / "outside")
    (path / "unet").symlink_to(path.parent / "outside")


def loop_link(path: Path) -> None:
    (path / "unet" / "model.onnx").unlink()
    (path / "unet" / "model.onnx").symlink_to("model.onnx")


def cut_file(path: Path) -> None:
    file = path / "unet" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-7])


def set_unet(name: str, value: object) -> Damage:
    return change_manifest(lambda manifest: manifest["components"]["unet"].update({name: value}))


BAD_BUNDLES: dict[str, tuple[Damage, bool]] = {
    # What is done to it, and whether the way out is the same in C.
    "manifest a list": (write_text(b"[]"), True),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), True),
    "future": (change_manifest(lambda manifest: manifest.update(format_version=9)), False),
    "version a text": (change_manifest(lambda manifest: manifest.update(format_version="1")), True),
    "version true": (change_manifest(lambda manifest: manifest.update(format_version=True)), True),
    "no latents": (change_manifest(lambda manifest: manifest.pop("latents")), True),
    "latents a list": (change_manifest(lambda manifest: manifest.update(latents=[])), True),
    "name a number": (change_manifest(lambda manifest: manifest.update(name=3)), True),
    "no default height": (change_manifest(lambda m: m["defaults"].pop("height")), True),
    "height a text": (change_manifest(lambda m: m["defaults"].update(height="32")), True),
    "height a fraction": (change_manifest(lambda m: m["defaults"].update(height=32.5)), True),
    "unknown source": (replace_text('"source": "prompt_embeds"', '"source": "motion"'), False),
    "outside": (replace_text("unet/model.onnx", "../secret"), True),
    "absolute": (replace_text("unet/model.onnx", "/etc/passwd"), True),
    "backslash": (replace_text("unet/model.onnx", "unet\\\\model.onnx"), True),
    "drive": (replace_text("unet/model.onnx", "C:/model.onnx"), True),
    "not listed": (change_manifest(lambda m: m["files"].pop("unet/model.onnx")), True),
    "no default variant": (set_unet("default_variant", "int8"), True),
    "stray CPU graph": (set_unet("cpu_graphs", {"int8": "unet/model.onnx"}), True),
    "steps a word": (replace_text('"8": "schedules', '"many": "schedules'), True),
    "steps zero": (replace_text('"8": "schedules', '"0": "schedules'), True),
    "default scheduler": (replace_text('"scheduler": "ddim"', '"scheduler": "unipc"'), True),
    "absent file": (lambda path: (path / "unet" / "model.onnx").unlink(), True),
    "cut file": (cut_file, True),
    "link outside": (replace_with_link, True),
    "link loop": (loop_link, True),
}


@pytest.mark.parametrize("kind", list(BAD_BUNDLES))
def test_open_refuses_a_bad_bundle_as_python_does(
    library: Library, own_bundle: Path, kind: str
) -> None:
    damage, same_way_out = BAD_BUNDLES[kind]
    damage(own_bundle)
    check_same(
        lambda: NativePipeline.open(own_bundle, library=library),
        lambda: VideoPipeline.open(own_bundle),
        BundleError,
        same_way_out=same_way_out,
    )


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe\x00", b"{}}", b'{"a": 01}', b"\xef\xbb\xbf{}", b"{'a': 1}"]
)
def test_open_refuses_a_manifest_that_is_no_json_as_python_does(
    library: Library, own_bundle: Path, data: bytes
) -> None:
    (own_bundle / "manifest.json").write_bytes(data)
    found = catch(lambda: NativePipeline.open(own_bundle, library=library))
    expected = catch(lambda: VideoPipeline.open(own_bundle))
    assert type(found) is type(expected) is BundleError
    # What follows is the place of the mistake in C.
    start = f"{own_bundle / 'manifest.json'} is not valid JSON (damaged?): "
    assert str(expected).startswith(start)
    assert str(found).startswith(start)
    assert "\n" not in str(found)


def test_a_manifest_that_was_cut_anywhere_is_no_json(library: Library, own_bundle: Path) -> None:
    data = (own_bundle / "manifest.json").read_bytes()
    for length in range(0, len(data), 53):
        (own_bundle / "manifest.json").write_bytes(data[:length])
        error = catch(lambda: NativePipeline.open(own_bundle, library=library))
        assert "is not valid JSON (damaged?)" in str(error)


def test_open_refuses_what_is_no_bundle_as_python_does(
    library: Library, text_bundle: Path, tmp_path: Path
) -> None:
    for path in (tmp_path / "nothing", text_bundle / "manifest.json", tmp_path):
        check_same(
            lambda path=path: NativePipeline.open(path, library=library),
            lambda path=path: VideoPipeline.open(path),
            BundleError,
        )


# ---- files that are read later


def flip_byte(path: Path, position: int = 50) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, name: str, text: str) -> None:
    """Change a file of a bundle, and its digest with it."""
    (path / name).write_text(text)
    write_manifest(path, read_manifest(path))


def replace_table(path: Path, text: str) -> None:
    rewrite(path, "schedules/ddim_4.json", text)


def change_table(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(path: Path) -> None:
        table = json.loads((path / "schedules" / "ddim_4.json").read_text())
        change(table)
        replace_table(path, json.dumps(table))

    return damage


def save_other_table(path: Path) -> None:
    make_table("ddim", 3, 0.0).save(path / "schedules" / "ddim_4.json")
    write_manifest(path, read_manifest(path))


def change_timestep_type(path: Path) -> None:
    manifest = read_manifest(path)
    manifest["components"]["unet"]["inputs"]["timestep"]["dtype"] = "float32"
    write_manifest(path, manifest)


def rename_input(path: Path) -> None:
    manifest = read_manifest(path)
    inputs = manifest["components"]["unet"]["inputs"]
    inputs["my_sample"] = inputs.pop("sample")
    write_manifest(path, manifest)


BAD_FILES: dict[str, tuple[Damage, type[MutoscopeError]]] = {
    "graph": (lambda path: flip_byte(path / "unet" / "model.onnx"), BundleError),
    "decoder": (lambda path: flip_byte(path / "vae_decoder" / "model.onnx"), BundleError),
    "table": (lambda path: flip_byte(path / "schedules" / "ddim_4.json"), BundleError),
    "tokenizer": (lambda path: flip_byte(path / TOKENIZER), BundleError),
    "table a list": (lambda path: replace_table(path, "[]"), ScheduleError),
    "future table": (change_table(lambda table: table.update(format_version=9)), BundleError),
    "table without rows": (change_table(lambda table: table.pop("rows")), ScheduleError),
    "table of no rows": (change_table(lambda table: table.update(rows=[])), ScheduleError),
    "sigma a text": (change_table(lambda t: t.update(init_noise_sigma="1")), ScheduleError),
    "row a number": (change_table(lambda table: table["rows"].__setitem__(0, 3)), ScheduleError),
    "no registers": (change_table(lambda t: t.update(num_registers=0)), ScheduleError),
    "register": (
        change_table(lambda t: t["rows"][0]["updates"][0].update(into=7)),
        ScheduleError,
    ),
    "other table": (save_other_table, ScheduleError),
    "graph's type": (change_timestep_type, EngineError),
    "graph's inputs": (rename_input, EngineError),
}


@pytest.mark.parametrize("kind", list(BAD_FILES))
def test_generate_refuses_a_bad_file_as_python_does(
    library: Library, own_bundle: Path, kind: str
) -> None:
    damage, error = BAD_FILES[kind]
    damage(own_bundle)
    with (
        NativePipeline.open(own_bundle, library=library) as native,
        VideoPipeline.open(own_bundle) as python,
    ):
        check_same(
            lambda: native.generate("a"),
            lambda: python.generate("a"),
            error,
            same_way_out="future" not in kind,
        )


@pytest.mark.parametrize("text", ["", "no json", "[" * 100_000, '{"rows": 1', "\xff"])
def test_a_table_that_is_no_json_is_one_line(library: Library, own_bundle: Path, text: str) -> None:
    replace_table(own_bundle, text)
    with NativePipeline.open(own_bundle, library=library) as native:
        error = catch(lambda: native.generate("a"))
    # The reason in brackets is that of Python's reader in Python.
    table = own_bundle.resolve() / "schedules" / "ddim_4.json"
    assert type(error) is BundleError
    assert str(error).startswith(f"{table} is no JSON file (")
    assert "\n" not in str(error)


def test_a_manifest_as_deep_as_a_well_is_refused(library: Library, own_bundle: Path) -> None:
    for text in ("[" * 1_000_000, '{"a":' * 1_000_000, f"{'[' * 500_000}{']' * 500_000}"):
        (own_bundle / "manifest.json").write_text(text)
        error = catch(lambda: NativePipeline.open(own_bundle, library=library))
        assert type(error) is BundleError


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"version": "9.0"}', "[" * 100_000])
def test_a_damaged_tokenizer_is_one_line(library: Library, own_bundle: Path, text: str) -> None:
    rewrite(own_bundle, TOKENIZER, text)
    with NativePipeline.open(own_bundle, library=library) as native:
        # The reason in brackets is another library's in Python.
        for call in (lambda: native.generate("a"), lambda: native.tokenize("a")):
            error = catch(call)
            assert type(error) is BundleError
            assert str(error).startswith(TOKENIZER)
            assert "\n" not in str(error)


def test_a_graph_that_is_none_is_an_error_of_the_engine(library: Library, own_bundle: Path) -> None:
    rewrite(own_bundle, "unet/model.onnx", "no graph")
    with NativePipeline.open(own_bundle, library=library) as native:
        error = catch(lambda: native.generate("a"))
    assert type(error) is EngineError
    assert "unet/model.onnx cannot be loaded: " in str(error)
    assert "\n" not in str(error)
