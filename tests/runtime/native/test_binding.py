"""The binding: where it finds the library, what it imports, and that its names are Python's."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import time
from ctypes import CDLL
from pathlib import Path

import pytest

import mutoscope.runtime.native.library as library_module
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.errors import BundleError, MissingExtraError
from mutoscope.runtime.native import Library, NativeError, NativePipeline, NativeProgress
from mutoscope.runtime.native.arguments import GenerateArguments, decode_text
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.settings import make_settings
from tests.runtime.hand_made_bundle import write_manifest
from tests.runtime.native.native_bundles import read_manifest
from tests.runtime.native.programs import run_python

# What a program of Python would load; the library has its own onnxruntime and tokenizer.
NEVER = ("onnxruntime", "tokenizers", "PIL", "av", "torch", "onnx")


def test_a_generation_needs_neither_onnxruntime_nor_tokenizers_of_python(
    library: Library, text_bundle: Path
) -> None:
    code = (
        "import sys\n"
        f"for name in {NEVER}:\n"
        "    sys.modules[name] = None\n"
        "from mutoscope.runtime.native import NativePipeline\n"
        "with NativePipeline.open(sys.argv[1]) as pipeline:\n"
        "    print(pipeline.generate('a red circle', seed=1).frames.shape)"
    )
    assert run_python(code, text_bundle, MUTOSCOPE_LIBRARY=library.path) == "(6, 32, 48, 3)\n"


# Every kind of call, working and failing; what is printed is what the code itself prints.
_CALLS = """
import sys
from mutoscope.runtime.errors import MutoscopeError
from mutoscope.runtime.native import NativePipeline
good, damaged, empty = sys.argv[1:]
count = 0
def fails(call):
    global count
    try:
        call()
    except MutoscopeError:
        count += 1
for path in (empty, empty + "/nothing"):
    fails(lambda: NativePipeline.open(path))
fails(lambda: NativePipeline.open(good, variant="int8"))
fails(lambda: NativePipeline.open(good, execution_provider="cuda"))
with NativePipeline.open(damaged) as pipeline:
    fails(lambda: pipeline.generate("a"))
    fails(pipeline.load)
with NativePipeline.open(good, memory="low") as pipeline:
    pipeline.load()
    pipeline.info()
    pipeline.tokenize("a red circle")
    pipeline.generate("a red circle", seed=1, on_frame=lambda index, frame: None)
    fails(lambda: pipeline.generate("a red circle", seed=1, on_progress=lambda p: False))
    fails(lambda: pipeline.generate("a " * 100))
    fails(lambda: pipeline.generate("a", height=17))
    pipeline.unload()
with NativePipeline.open(good) as pipeline:
    import numpy
    # An error of a graph, of which onnxruntime itself would print a line.
    fails(lambda: pipeline.generate(prompt_ids=numpy.array([[99999]])))
print(count)
"""


def test_nothing_is_printed_by_calls_that_work_and_calls_that_fail(
    library: Library, text_bundle: Path, own_bundle: Path, tmp_path: Path
) -> None:
    (own_bundle / "unet" / "model.onnx").write_bytes(b"no graph")
    write_manifest(own_bundle, read_manifest(own_bundle))
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = run_python(_CALLS, text_bundle, own_bundle, empty, MUTOSCOPE_LIBRARY=library.path)
    assert printed == "10\n"


def test_the_arguments_are_those_of_python() -> None:
    python = set(inspect.signature(VideoPipeline.generate).parameters)
    # Python's own callbacks, and previews, which the library has none of.
    python -= {"self", "prompt", "on_step", "on_decode", "on_frames", "on_preview"}
    only_native = {"prompt_ids", "negative_prompt_ids"}
    assert set(GenerateArguments.__annotations__) == python | only_native
    python_open = set(inspect.signature(VideoPipeline.open).parameters) - {
        "engine",
        "engine_options",
    }
    native_open = set(inspect.signature(NativePipeline.open).parameters)
    assert native_open - python_open == {"library", "allow_cpu_nodes", "provider_options"}
    assert python_open <= native_open


def test_info_is_what_the_manifest_says(native: NativePipeline, text_bundle: Path) -> None:
    manifest, info = Bundle.open(text_bundle).manifest, native.info()
    defaults = manifest.defaults
    for name in ("num_inference_steps", "num_frames", "height", "width", "guidance_scale"):
        assert info[name] == getattr(defaults, name), name
    assert (info["scheduler"], info["frame_rate"]) == (defaults.scheduler, defaults.frame_rate)
    assert (info["name"], info["family"]) == (manifest.name, manifest.family)
    assert (info["takes_prompt"], info["takes_image"], info["guidance"]) == (1, 0, 1)
    assert info["negative_prompt"] == ""
    assert info["min_guidance_scale"] == 0
    assert (info["latents_channels"], info["vae_scale_factor_spatial"]) == (4, 8)
    assert info["vae_scale_factor_temporal"] == 1
    limit = {"minimum": 16, "maximum": 256, "multiple": 16, "offset": 0}
    assert info["height_limit"] == info["width_limit"] == limit
    assert info["num_frames_limit"] == {"minimum": 1, "maximum": 32, "multiple": 1, "offset": 0}
    assert (info["takes_context_windows"], info["guidance_passes"]) == (1, 0)


def test_info_says_what_a_bundle_has_otherwise(library: Library, own_bundle: Path) -> None:
    manifest = read_manifest(own_bundle)
    manifest["defaults"]["guidance_passes"] = "batched"
    inputs = manifest["components"]["unet"]["inputs"]
    inputs["encoder_hidden_states"]["shape"] = ["batch", "num_frames", 6]
    write_manifest(own_bundle, manifest)
    with NativePipeline.open(own_bundle, library=library) as pipeline:
        info = pipeline.info()
    assert (info["takes_context_windows"], info["guidance_passes"]) == (0, 1)


def test_lists_are_what_the_manifest_says(native: NativePipeline) -> None:
    assert native.list_names("schedulers") == ("ddim", "euler-ancestral")
    assert native.list_names("variants") == ("float32",)
    assert native.list_names("components") == ("text_encoder", "unet", "vae_decoder")
    assert native.list_names("conditions") == ("strength",)
    assert native.list_names("tokenizers") == ("input_ids",)
    assert native.list_names("prompt_embeds") == ("prompt_embeds",)
    assert native.list_steps() == (1, 2, 3, 4, 8)
    assert native.list_steps("EulerAncestralDiscreteScheduler") == (1, 2, 3, 4)
    assert native.condition("strength") == {
        "index": 0,
        "default_value": 1.0,
        "minimum": 0.0,
        "maximum": 10.0,
        "description": "How bright",
    }


def test_a_bundle_of_images_says_so(library: Library, image_bundle: Path) -> None:
    with NativePipeline.open(image_bundle, library=library) as pipeline:
        info = pipeline.info()
        assert (info["takes_prompt"], info["takes_image"]) == (0, 1)
        assert pipeline.list_names("tokenizers") == pipeline.list_names("prompt_embeds") == ()


def test_resolve_says_what_python_would_make(native: NativePipeline, text_bundle: Path) -> None:
    expected = make_settings(
        Bundle.open(text_bundle), scheduler="Euler_Ancestral", num_inference_steps=2, seed=5
    )
    found = native.resolve("a", scheduler="Euler_Ancestral", num_inference_steps=2, seed=5)
    for name in ("scheduler", "num_inference_steps", "seed", "guidance_scale", "frame_rate"):
        assert found[name] == getattr(expected, name), name
    assert (found["num_frames"], found["height"], found["width"]) == (6, 32, 48)
    assert found["frames_bytes"] == 6 * 32 * 48 * 3
    assert found["uses_guidance"] == 1
    assert native.resolve("a")["seed"] == 0
    assert native.resolve("a", guidance_scale=1)["uses_guidance"] == 0


def test_timings_and_memory_are_measured(native: NativePipeline) -> None:
    video = native.generate("a red circle", seed=1)
    timings = video.timings
    parts = [
        timings.seconds_load,
        timings.seconds_text_encoder,
        timings.seconds_denoiser,
        timings.seconds_sampler,
        timings.seconds_vae_decoder,
    ]
    assert min(parts) > 0
    assert sum(parts) < timings.seconds_total
    assert 2**20 < video.resident_bytes <= video.peak_resident_bytes


def test_the_time_of_the_frame_callback_is_apart(native: NativePipeline) -> None:
    started = time.perf_counter()
    video = native.generate("a red circle", on_frame=lambda _index, _frame: time.sleep(0.02))
    seconds = time.perf_counter() - started
    timings = video.timings
    assert timings.seconds_output >= len(video.frames) * 0.02
    assert 0 < timings.seconds_total <= seconds - timings.seconds_output


def test_loading_ahead_and_unloading_change_no_frame(library: Library, own_bundle: Path) -> None:
    with NativePipeline.open(own_bundle, library=library, num_threads=1) as pipeline:
        pipeline.load()
        graph = own_bundle / "unet" / "model.onnx"
        data = graph.read_bytes()
        # What is loaded needs its file no more.
        graph.write_bytes(bytes(len(data)))
        loaded = pipeline.generate("a", seed=1)
        pipeline.unload()
        with pytest.raises(BundleError, match="does not match its sha256"):
            pipeline.generate("a", seed=1)
        graph.write_bytes(data)
        again = pipeline.generate("a", seed=1)
    assert (loaded.frames == again.frames).all()


def list_mapped(folder: Path) -> set[str]:
    """The files of a folder that are part of this process's memory."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    paths = (line.partition("/")[2] for line in lines)
    start = f"{folder.resolve()}/"[1:]
    return {path.removeprefix(start) for path in paths if path.startswith(start)}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_low_memory_frees_each_component_after_its_last_run(
    library: Library, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(DEFAULT_BUNDLE_PATH, tmp_path / "bundle"))
    weights = {
        f"{name}/model.onnx.data" for name in ("text_encoder", "unet_few_step", "vae_decoder")
    }
    seen: dict[str, list[set[str]]] = {"encoding": [], "denoising": [], "decoding": []}

    def on_progress(progress: NativeProgress) -> None:
        seen[progress.stage].append(list_mapped(bundle) & weights)

    with NativePipeline.open(bundle, library=library, num_threads=1, memory="low") as pipeline:
        pipeline.generate(
            "a red circle",
            seed=1,
            height=32,
            width=32,
            num_frames=1,
            num_inference_steps=2,
            on_progress=on_progress,
        )
        assert list_mapped(bundle) & weights == set()
    assert seen["denoising"][0] == {"unet_few_step/model.onnx.data"}
    assert seen["decoding"][0] <= {"vae_decoder/model.onnx.data"}


def test_a_closed_pipeline_refuses_all_calls(library: Library, text_bundle: Path) -> None:
    pipeline = NativePipeline.open(text_bundle, library=library)
    pipeline.close()
    pipeline.close()
    with pytest.raises(NativeError, match="MUTOSCOPE_ERROR_ARGUMENT"):
        pipeline.generate("a")
    with pytest.raises(NativeError, match="MUTOSCOPE_ERROR_ARGUMENT"):
        pipeline.cancel()


def test_a_message_that_is_not_utf8_is_shown_with_escapes() -> None:
    assert decode_text(b"a \xc3\xa9 \xff") == "a \u00e9 \\xff"
    assert decode_text(None) == ""


# Prints the status of the generation, and that Ctrl-C was seen.
_INTERRUPTED = """
import os, signal, sys, threading, time
from mutoscope.runtime.native import NativePipeline
kind = sys.argv[2]
with NativePipeline.open(sys.argv[1], num_threads=1) as pipeline:
    functions = pipeline._library.functions
    generate = functions.mutoscope_generate
    def watch(*arguments):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        status = generate(*arguments)
        print(status)
        return status
    functions.mutoscope_generate = watch
    callbacks = {} if kind == "none" else {kind: lambda *values: None}
    try:
        pipeline.generate(
            "a", height=64, width=64, num_frames=8, num_inference_steps=50, **callbacks
        )
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("kind", ["none", "on_progress", "on_frame"])
def test_ctrl_c_stops_a_generation(library: Library, kind: str) -> None:
    printed = run_python(_INTERRUPTED, DEFAULT_BUNDLE_PATH, kind, MUTOSCOPE_LIBRARY=library.path)
    assert printed == "-7\nKeyboardInterrupt\nTrue\n"


# ---- where the library is


def test_the_variable_names_the_library(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUTOSCOPE_LIBRARY", library.path)
    assert Library().path == library.path


def test_a_build_in_the_checkout_is_found(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MUTOSCOPE_LIBRARY", raising=False)
    built = tmp_path / "libmutoscope.so"
    built.symlink_to(library.path)
    monkeypatch.setattr(library_module, "_BUILT", built)
    assert Library().path == str(built)


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_library_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_variable: bool
) -> None:
    monkeypatch.setattr(library_module, "_BUILT", tmp_path / "libmutoscope.so")
    monkeypatch.setattr(library_module, "_SONAME", "libmutoscope-of-nobody.so.1")
    monkeypatch.delenv("MUTOSCOPE_LIBRARY", raising=False)
    if by_variable:
        monkeypatch.setenv("MUTOSCOPE_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(
        MissingExtraError, match=r"^libmutoscope cannot be loaded \(.*\): build it with make "
    ):
        Library()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int nothing;", "has no mutoscope_version: build it again"),
        ("unsigned mutoscope_abi_version(void) { return 9; }", "has ABI version 9; .* needs 1"),
    ],
)
def test_another_library_is_refused(tmp_path: Path, source: str, message: str) -> None:
    if "abi" in source:
        names = set(library_module.FUNCTIONS) - {"mutoscope_abi_version"}
        source += "".join(f"void {name}(void) {{}}" for name in sorted(names))
    file, path = tmp_path / "other.c", tmp_path / "libmutoscope.so"
    file.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", str(file), "-o", str(path)], check=True)
    assert CDLL(str(path))
    with pytest.raises(MissingExtraError, match=message):
        Library(path)
