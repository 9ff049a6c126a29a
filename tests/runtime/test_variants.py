"""Several variants of a component in one bundle: which graph runs, and which files belong to it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime import main
from mutoscope.runtime.benchmarks.contestants import choose_variants, make_own, make_peers
from mutoscope.runtime.built_engines import find_built
from mutoscope.runtime.bundle import Bundle, find_external_data
from mutoscope.runtime.commands.inspect import format_bytes
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.components import Components
from mutoscope.runtime.engine_choice import GraphFinder
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.onnxruntime_engines import build_for_onnxruntime
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.settings import make_settings
from tests.runtime.hand_made_bundle import make_unet, write_manifest

PROMPT = "a red circle"
VARIANTS = {
    "float32": "unet/model.onnx",
    "float16": "unet/model_fp16.onnx",
    "int8": "unet/model_int8.onnx",
}
CPU_GRAPHS = {"float32": "unet/model_cpu.onnx", "int8": "unet/model_int8_cpu.onnx"}
# A weight that tells which graph ran; the graph for processors of float32 has the plain one's.
WEIGHTS = {
    VARIANTS["float32"]: 0.5,
    VARIANTS["float16"]: 0.4,
    VARIANTS["int8"]: 0.3,
    CPU_GRAPHS["int8"]: 0.2,
}
EVERYTHING = [*VARIANTS.values(), *CPU_GRAPHS.values()]


def save_unet(path: Path, weight: float) -> None:
    """Write the denoiser with another weight, which lies in a file beside it."""
    model = make_unet()
    for tensor in model.graph.initializer:
        if tensor.name == "sample_weight":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(weight), tensor.name))
    path.unlink(missing_ok=True)
    # Else onnx appends to it.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=0,
    )


def add_variants(bundle: Path, variants: tuple[str, ...] = tuple(VARIANTS)) -> dict[str, Any]:
    """Give the denoiser of a hand-made bundle these variants; returns the manifest."""
    graphs = {name: path for name, path in VARIANTS.items() if name in variants}
    cpu_graphs = {name: path for name, path in CPU_GRAPHS.items() if name in variants}
    for name, weight in WEIGHTS.items():
        if name in (*graphs.values(), *cpu_graphs.values()):
            save_unet(bundle / name, weight)
    if "float32" in variants:
        shutil.copy(bundle / VARIANTS["float32"], bundle / CPU_GRAPHS["float32"])
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    unet = manifest["components"]["unet"]
    unet.update(variants=graphs, cpu_graphs=cpu_graphs, default_variant=next(iter(graphs)))
    write_manifest(bundle, manifest)
    return manifest


@pytest.fixture
def variants_path(own_bundle: Path) -> Path:
    """A bundle whose denoiser has three variants, where the rest is float32."""
    add_variants(own_bundle)
    return own_bundle


@pytest.fixture
def bundle(variants_path: Path) -> Bundle:
    return Bundle.open(variants_path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


def make_latents(pipeline: VideoPipeline) -> list[float]:
    latents = pipeline.generate(PROMPT, seed=0, num_inference_steps=2).latents
    assert latents is not None
    return [float(value) for value in latents.ravel()]


@pytest.mark.parametrize(
    ("variant", "for_cpu", "graph", "data"),
    [
        ("float32", False, "unet/model.onnx", "unet/model.onnx.data"),
        ("float32", True, "unet/model_cpu.onnx", "unet/model.onnx.data"),
        ("float16", True, "unet/model_fp16.onnx", "unet/model_fp16.onnx.data"),
        ("int8", False, "unet/model_int8.onnx", "unet/model_int8.onnx.data"),
        ("int8", True, "unet/model_int8_cpu.onnx", "unet/model_int8_cpu.onnx.data"),
    ],
)
def test_each_graph_is_checked_with_its_own_data_alone(
    variants_path: Path, variant: str, for_cpu: bool, graph: str, data: str
) -> None:
    bundle = Bundle.open(variants_path)
    assert find_external_data(bundle.manifest, bundle.find_component("unet"), graph) == [data]
    others = [name for name in bundle.manifest.files if name.startswith("unet/")]
    for name in set(others) - {graph, data}:
        damage(variants_path / name)
    assert bundle.load_graph("unet", variant, for_cpu=for_cpu) == variants_path / graph
    damage(variants_path / data)
    with pytest.raises(BundleError, match=f"{data} does not match its sha256"):
        bundle.load_graph("unet", variant, for_cpu=for_cpu)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_data_of_another_name_may_be_every_graphs(variants_path: Path) -> None:
    manifest = json.loads((variants_path / "manifest.json").read_text())
    (variants_path / "unet" / "model.onnx.data").rename(variants_path / "unet" / "weights.bin")
    (variants_path / "unet" / "model_fp16.onnx.data").rename(
        variants_path / "unet" / "model_fp16.onnx_data"
    )
    write_manifest(variants_path, manifest)
    opened = Bundle.open(variants_path)
    found = {
        graph: find_external_data(opened.manifest, opened.find_component("unet"), graph)
        for graph in EVERYTHING
    }
    assert found == {
        "unet/model.onnx": ["unet/weights.bin"],
        "unet/model_cpu.onnx": ["unet/weights.bin"],
        "unet/model_fp16.onnx": ["unet/model_fp16.onnx_data", "unet/weights.bin"],
        "unet/model_int8.onnx": ["unet/model_int8.onnx.data", "unet/weights.bin"],
        "unet/model_int8_cpu.onnx": ["unet/model_int8_cpu.onnx.data", "unet/weights.bin"],
    }


@pytest.mark.parametrize(
    ("variant", "graph"),
    [
        (None, "unet/model_cpu.onnx"),
        ("float32", "unet/model_cpu.onnx"),
        ("float16", "unet/model_fp16.onnx"),
        ("int8", "unet/model_int8_cpu.onnx"),
    ],
)
def test_components_run_the_variant_or_their_default(
    bundle: Bundle, variant: str | None, graph: str
) -> None:
    with (
        VideoPipeline(bundle, variant=variant) as pipeline,
        VideoPipeline(bundle) as expected,
    ):
        expected.replace_engine("unet", open_engine(bundle.path / graph, EngineOptions()))
        assert make_latents(pipeline) == make_latents(expected)
        assert pipeline.variants == {
            "text_encoder": "float32",
            "unet": variant or "float32",
            "vae_decoder": "float32",
        }


def test_the_default_variant_of_a_component_may_be_any(variants_path: Path) -> None:
    manifest = json.loads((variants_path / "manifest.json").read_text())
    manifest["components"]["unet"]["default_variant"] = "int8"
    write_manifest(variants_path, manifest)
    with (
        VideoPipeline.open(variants_path) as pipeline,
        VideoPipeline.open(variants_path, variant="int8") as same,
        VideoPipeline.open(variants_path, variant="float32") as other,
    ):
        latents = make_latents(pipeline)
        assert latents == make_latents(same)
        assert latents != make_latents(other)


def test_a_variant_of_no_component_is_refused_with_those_there_are(bundle: Bundle) -> None:
    message = r"variant 'int4' is not in this bundle: use float32, float16, int8$"
    with pytest.raises(ParameterError, match=message):
        VideoPipeline(bundle, variant="int4")
    with pytest.raises(ParameterError, match=message):
        Components(bundle, EngineOptions(), "int4")


def test_tiles_are_float32_whichever_variant_is_asked_for(variants_path: Path) -> None:
    bundle = Bundle.open(variants_path)
    damage(variants_path / "unet" / "model_int8.onnx.data")
    open_tile = Components(bundle, EngineOptions(), "int8").make_opener("unet")
    open_tile("unet/model.onnx").close()
    damage(variants_path / "unet" / "model.onnx.data")
    with pytest.raises(BundleError, match=r"unet/model\.onnx\.data does not match"):
        Components(bundle, EngineOptions(), "int8").make_opener("unet")


def test_what_was_built_stays_valid_when_a_variant_is_added(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_variants(own_bundle, ("float32",))
    before = Bundle.open(own_bundle)
    feeds = make_inputs(before, make_settings(before, seed=0))["unet"]
    built = build_for_onnxruntime(before, "unet", feeds)
    add_variants(own_bundle)
    after = Bundle.open(own_bundle)
    assert list(find_built(after, "unet")) == [built]
    assert GraphFinder(after, EngineOptions()).find("unet").path == built.path
    int8 = after.load_graph("unet", "int8", for_cpu=True)
    assert GraphFinder(after, EngineOptions(), "int8").find("unet").path == int8
    both = build_for_onnxruntime(after, "unet", feeds, "int8")
    assert (built.variant, both.variant) == ("float32", "int8")
    assert GraphFinder(after, EngineOptions(), "int8").find("unet").path == both.path
    assert GraphFinder(after, EngineOptions()).find("unet").path == built.path
    assert list(find_built(after, "unet", "int8")) == [both]
    assert not caplog.records


def test_only_what_was_built_of_the_same_variant_is_missed(
    variants_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(variants_path)
    feeds = make_inputs(bundle, make_settings(bundle, seed=0))["unet"]
    build_for_onnxruntime(bundle, "unet", feeds, "int8")
    manifest = json.loads((variants_path / "manifest.json").read_text())
    save_unet(variants_path / CPU_GRAPHS["int8"], 0.1)
    write_manifest(variants_path, manifest)
    changed = Bundle.open(variants_path)
    with caplog.at_level(logging.WARNING):
        GraphFinder(changed, EngineOptions()).find("unet")
        assert not caplog.records
        GraphFinder(changed, EngineOptions(), "int8").find("unet")
    (record,) = caplog.records
    assert record.getMessage().endswith(f"mutoscope build {variants_path} --variant int8")


def test_build_builds_the_variant_and_removes_it_alone(
    variants_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", variants_path, "--component", "unet") == 0
    capsys.readouterr()
    assert run("build", variants_path, "--variant", "int8", "--json") == 0
    built = json.loads(capsys.readouterr().out)["built"]
    assert [(record["component"], record["variant"]) for record in built] == [
        ("text_encoder", "float32"),
        ("unet", "int8"),
        ("vae_decoder", "float32"),
    ]
    assert run("inspect", variants_path) == 0
    lines = capsys.readouterr().out
    assert "kB of float32, used on this machine's CPU" in lines
    assert "kB of int8, used on this machine's CPU" in lines
    assert run("build", variants_path, "--remove", "--variant", "int8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [built[1]["folder"]]
    left = list(find_built(Bundle.open(variants_path), "unet"))
    assert [engine.variant for engine in left] == ["float32"]


def test_generate_and_decode_take_a_variant(
    variants_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {variant: tmp_path / f"{variant}.npy" for variant in VARIANTS}
    options = ["--bundle", variants_path, "--seed", 0]
    for variant, output in outputs.items():
        latents = ["--save-latents", tmp_path / "latents.npz", "--force"]
        arguments = [*options, "--variant", variant, "-o", output, *latents, "--json"]
        assert run("generate", PROMPT, *arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["variants"] == {
            "text_encoder": "float32",
            "unet": variant,
            "vae_decoder": "float32",
        }
    assert len({path.read_bytes() for path in outputs.values()}) == len(VARIANTS)
    decoded = tmp_path / "decoded.npy"
    latents = [tmp_path / "latents.npz", "--bundle", variants_path, "--variant", "int8"]
    assert run("decode", *latents, "-o", decoded, "--json") == 0
    assert decoded.read_bytes() == outputs["int8"].read_bytes()
    assert json.loads(capsys.readouterr().out)["info"]["variants"]["unet"] == "int8"


@pytest.mark.parametrize(
    ("variants", "way"),
    [
        (("float16",), "use --variant float32, or make int8 graphs with mutoscope calibrate "),
        (("float16", "int8"), "use --variant float32 or int8\n"),
    ],
)
def test_generate_says_that_float16_is_not_faster_on_a_cpu(
    own_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variants: tuple[str, ...],
    way: str,
) -> None:
    add_variants(own_bundle, variants)
    options = ["--bundle", own_bundle, "--seed", 0, "--force", "-o", tmp_path / "out.npy"]
    assert run("generate", PROMPT, *options) == 0
    lines = capsys.readouterr().err
    assert lines.startswith("note: float16 is not faster on a CPU: ")
    assert way in lines
    if "int8" in variants:
        assert run("generate", PROMPT, *options, "--variant", "int8") == 0
        assert "float16" not in capsys.readouterr().err


def test_a_bundle_of_float16_alone_has_no_faster_variant_to_name(
    own_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    for component in manifest["components"].values():
        component["variants"] = {"float16": component["variants"]["float32"]}
        component["default_variant"] = "float16"
    write_manifest(own_bundle, manifest)
    assert run("generate", PROMPT, "--bundle", own_bundle, "-o", tmp_path / "out.npy") == 0
    (note, _) = capsys.readouterr().err.splitlines()
    assert note.endswith("use a bundle of mutoscope export CHECKPOINT -o BUNDLE --dtype float32")


@pytest.mark.parametrize(
    "command",
    [
        ["generate", PROMPT, "-o", "out.npy", "--bundle"],
        ["decode", "latents.npz", "-o", "out.npy", "--bundle"],
        ["build"],
        ["verify"],
        ["bench"],
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_a_variant_that_is_not_there(
    bundle_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, bundle_path, "--variant", "int8") == 1
    captured = capsys.readouterr()
    assert captured.err == "error: variant 'int8' is not in this bundle: use float32\n"


def test_inspect_lists_all_graphs_with_their_sizes(
    variants_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", variants_path) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("  unet") + 1
    sizes = {path: (variants_path / path).stat().st_size for path in EVERYTHING}
    data = (variants_path / "unet" / "model.onnx.data").stat().st_size
    assert data > 0

    def describe(path: str) -> str:
        return format_bytes(sizes[path] + data)

    assert lines[start : start + 5] == [
        f"    float32: unet/model.onnx, {describe(VARIANTS['float32'])}, the default",
        f"    float32 for processors: unet/model_cpu.onnx, {sizes[CPU_GRAPHS['float32']]} B beside "
        "the same weights",
        f"    float16: unet/model_fp16.onnx, {describe(VARIANTS['float16'])}",
        f"    int8: unet/model_int8.onnx, {describe(VARIANTS['int8'])}",
        f"    int8 for processors: unet/model_int8_cpu.onnx, {describe(CPU_GRAPHS['int8'])}",
    ]


def test_verify_loads_all_variants_and_generates_with_one(
    variants_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", variants_path, "--variant", "int8") == 0
    lines = capsys.readouterr().err
    for variant in VARIANTS:
        assert f"unet ({variant}) loads and is as declared" in lines
    for variant in CPU_GRAPHS:
        assert f"unet ({variant}, for CPUs) loads and is as declared" in lines
    manifest = json.loads((variants_path / "manifest.json").read_text())
    (variants_path / CPU_GRAPHS["int8"]).write_bytes(b"no graph")
    write_manifest(variants_path, manifest)
    assert run("verify", variants_path, "--variant", "int8") == 1
    lines = capsys.readouterr().err
    assert "FAILED unet (int8, for CPUs) loads and is as declared" in lines
    assert "FAILED a generation of the smallest size" in lines
    assert run("verify", variants_path) == 1
    assert "FAILED a generation" not in capsys.readouterr().err


def test_contestants_are_named_after_the_variant_that_they_run(bundle: Bundle) -> None:
    own = [make_own(bundle.path, EngineOptions(), variant) for variant in ("float32", "int8")]
    contestants = [*make_peers(["onnxruntime-plain"], bundle.path), *own]
    for component, names in (
        ("unet", ["mutoscope onnxruntime float32", "mutoscope onnxruntime int8"]),
        ("text_encoder", ["mutoscope onnxruntime float32"]),
    ):
        chosen = choose_variants(contestants, bundle.find_component(component))
        assert [contestant.name for contestant in chosen] == ["onnxruntime-plain", *names]


def test_bench_measures_the_variants_in_turn(
    variants_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ["--component", "unet", "--count", 1, "--warm-ups", 1]
    assert run("bench", variants_path, "--variant", "float32,int8", *once, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["contestant"] for row in rows] == [
        "mutoscope onnxruntime float32",
        "mutoscope onnxruntime int8",
    ]
    # Beside the plain float32 graph, which is the reference: another weight is another output.
    assert rows[0]["relative_l2_error"] == 0.0
    assert rows[1]["relative_l2_error"] > 0.01
