"""Graphs that were rewritten for processors compute what the plain ones compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mutoscope.export.cpu_graphs.rewriting import REWRITES, check_rewrites, make_cpu_graph
from mutoscope.export.families.contract import Arrays, ComponentExport
from mutoscope.export.graph import make_graph, save_graph
from mutoscope.export.weights import store_weights_as_float16
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import Manifest, TensorRecord

# The same sums in another order, in float32.
RELATIVE_TOLERANCE = 1e-5
# One last bit before the rounding to whole levels.
LEVELS_TOLERANCE = 1

# Fixtures of bundles, and which rewrites their denoisers must have: a pattern that the exporter
# writes in another way one day would otherwise be lost without a word.
UNETS = {
    "tiny_bundle": {"fused-attention", "shared-text", "merged-transposes", "joined-norms"},
    "sdxl_bundle": {"fused-attention", "shared-text", "merged-transposes", "joined-norms"},
    "modelscope_bundle": set(REWRITES),
    "i2vgen_bundle": set(REWRITES),
    "svd_bundle": {"fused-attention", "shared-text", "temporal-convolutions", "joined-norms"},
}
CHANNELS, HEADS = 64, 2
MAX_FRAMES = 16


def make_sizes(manifest: Manifest, multiple: int, **others: int) -> dict[str, int]:
    """The length of each axis, for a clip that is this many of the smallest along each side."""
    limits, scale = manifest.limits, manifest.latents.vae_scale_factor_spatial
    height, width = multiple * limits.height.minimum, multiple * limits.width.minimum
    return {
        **others,
        "batch_frames": others["batch"] * others["num_frames"],
        "height": height,
        "width": width,
        "latent_height": height // scale,
        "latent_width": width // scale,
    }


@pytest.mark.parametrize("fixture", UNETS)
def test_a_rewritten_graph_equals_the_plain_one_at_every_size(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    manifest = Manifest.load(bundle / "manifest.json")
    frames, tokens = manifest.limits.num_frames, manifest.tokenizers.values()
    least = make_sizes(manifest, 1, batch=1, num_frames=frames.minimum, sequence=1)
    usual = make_sizes(
        manifest,
        2,
        batch=2,
        num_frames=min(frames.maximum or MAX_FRAMES, MAX_FRAMES),
        sequence=max((tokenizer.max_length for tokenizer in tokens), default=1),
    )
    mixed = {**usual, "batch": 1, "num_frames": 3, "batch_frames": 3}
    mixed["latent_width"] = least["latent_width"]
    compared = 0
    for component in manifest.components.values():
        for variant, path in component.cpu_graphs.items():
            plain, rewritten = (
                open_graph(bundle / name) for name in (component.variants[variant], path)
            )
            for sizes in (least, usual, mixed):
                inputs = draw_inputs(component.inputs, sizes)
                for expected, found in zip(
                    plain.run(None, inputs), rewritten.run(None, inputs), strict=True
                ):
                    assert_close(expected, found)
                    compared += 1
    assert compared >= 6  # of the denoiser and the decoder


@pytest.mark.parametrize("fixture", UNETS)
def test_nothing_that_a_rewrite_is_for_is_left_in_a_denoiser(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    folder = bundle / "unet"
    counts = make_cpu_graph(folder / "model.onnx", tmp_path / "model.onnx")
    assert set(counts) == UNETS[fixture]
    operators = count_operators(folder / "model_cpu.onnx")
    assert operators["Softmax"] == 0
    assert operators["Split"] == 0
    assert operators["BatchNormalization"] == operators["InstanceNormalization"] > 0
    assert operators["MultiHeadAttention"] == counts["fused-attention"]


def test_a_rewritten_graph_reads_the_weights_of_the_plain_one(tiny_bundle: Path) -> None:
    folder = tiny_bundle / "unet"
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "model.onnx.data", "model_cpu.onnx", "model_reuse.onnx",
        "model_cpu_reuse.onnx",
    }  # fmt: skip
    places = [list_places(folder / name) for name in ("model.onnx", "model_cpu.onnx")]
    assert places[1] <= places[0]
    assert {location for location, _, _ in places[1]} == {"model.onnx.data"}


class Attention(torch.nn.Module):
    """Frames attend to themselves, then to a text that is the same for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(6)
        )

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        batch, frames, pixels, _ = sample.shape
        tokens = sample.reshape(batch * frames, pixels, CHANNELS)
        per_frame = text.repeat_interleave(frames, dim=0)
        tokens = tokens + self.attend(0, tokens, tokens)
        tokens = tokens + self.attend(3, tokens, per_frame)
        return tokens.reshape(sample.shape)

    def attend(self, first: int, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        parts = [
            self.layers[first + index](source)
            .unflatten(-1, (HEADS, CHANNELS // HEADS))
            .transpose(1, 2)
            for index, source in enumerate((query, other, other))
        ]
        result = torch.nn.functional.scaled_dot_product_attention(*parts)
        return result.transpose(1, 2).flatten(2)


class CausalAttention(Attention):
    """The same with a mask, which is left as it is."""

    def attend(self, first: int, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        parts = [
            layer(query).unflatten(-1, (HEADS, CHANNELS // HEADS)).transpose(1, 2)
            for layer in self.layers[first : first + 3]
        ]
        result = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        return result.transpose(1, 2).flatten(2) + other.mean()


class Temporal(torch.nn.Module):
    """A norm over frames, a convolution over frames, and pixels that go to the front and back."""

    def __init__(self, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, CHANNELS)
        torch.nn.init.normal_(self.norm.weight)
        torch.nn.init.normal_(self.norm.bias)
        padding = tuple(size // 2 for size in kernel)
        self.conv = torch.nn.Conv3d(CHANNELS, 2 * CHANNELS, kernel, padding=padding)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        moved = self.conv(self.norm(sample)).permute(0, 3, 4, 2, 1)  # [B, H, W, F, 2 C]
        return 2 * (moved * moved.cumsum(3)).permute(0, 3, 4, 1, 2)  # [B, F, 2 C, H, W]


Shape = tuple[int | str, ...]

SIZES = {
    "batch": 2, "num_frames": 3, "height": 4, "width": 7, "pixels": 6, "sequence": 5,
}  # fmt: skip
TEMPORAL_INPUTS = {
    "sample": TensorRecord("float32", ("batch", CHANNELS, "num_frames", "height", "width"))
}
TEMPORAL_OUTPUT: Shape = ("batch", "num_frames", 2 * CHANNELS, "height", "width")
ATTENTION_OUTPUT: Shape = ("batch", "num_frames", "pixels", CHANNELS)
ATTENTION_INPUTS = {
    "sample": TensorRecord("float32", ATTENTION_OUTPUT),
    "text": TensorRecord("float32", ("batch", "sequence", CHANNELS)),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fused-attention"], {"fused-attention": 2}),
        (["shared-text", "fused-attention"], {"fused-attention": 2, "shared-text": 1}),
        (["joined-norms", "merged-transposes"], {}),
    ],
)
def test_attention_is_rewritten_alone_and_together(
    names: list[str], expected: dict[str, int], tmp_path: Path
) -> None:
    path = export(Attention(), ATTENTION_OUTPUT, tmp_path)
    assert make_cpu_graph(path, tmp_path / "model_cpu.onnx", names) == expected
    assert (tmp_path / "model_cpu.onnx").exists() == bool(expected)
    if expected:
        compare(tmp_path, ATTENTION_INPUTS)


def test_a_text_that_is_shared_is_projected_once(tmp_path: Path) -> None:
    path = export(Attention(), ATTENTION_OUTPUT, tmp_path)
    make_cpu_graph(path, tmp_path / "model_cpu.onnx")
    assert count_operators(path)["Expand"] == 1
    assert count_operators(tmp_path / "model_cpu.onnx")["Expand"] == 0


def test_attention_with_a_mask_is_left_alone(tmp_path: Path) -> None:
    path = export(CausalAttention(), ATTENTION_OUTPUT, tmp_path)
    assert make_cpu_graph(path, tmp_path / "model_cpu.onnx") == {}


@pytest.mark.parametrize("float16_weights", [False, True])
@pytest.mark.parametrize("name", ["merged-transposes", "temporal-convolutions", "joined-norms"])
def test_each_rewrite_of_temporal_layers_works_alone(
    name: str, float16_weights: bool, tmp_path: Path
) -> None:
    path = export(Temporal((3, 1, 1)), TEMPORAL_OUTPUT, tmp_path, float16_weights=float16_weights)
    assert make_cpu_graph(path, tmp_path / "model_cpu.onnx", [name]) == {
        name: 2 if name == "merged-transposes" else 1
    }
    compare(tmp_path, TEMPORAL_INPUTS)


def test_a_convolution_over_more_than_frames_is_left_alone(tmp_path: Path) -> None:
    path = export(Temporal((3, 3, 1)), TEMPORAL_OUTPUT, tmp_path)
    assert "temporal-convolutions" not in make_cpu_graph(path, tmp_path / "model_cpu.onnx")
    compare(tmp_path, TEMPORAL_INPUTS)


class Gated(torch.nn.Module):
    """A GEGLU, and a linear layer that is cut elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = torch.nn.Linear(CHANNELS, 4 * CHANNELS)
        self.whole = torch.nn.Linear(2 * CHANNELS, 4 * CHANNELS)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden, gate = self.gated(sample.permute(0, 2, 3, 4, 1)).chunk(2, dim=-1)
        first, second, third = self.whole(hidden * torch.nn.functional.gelu(gate)).split(
            (CHANNELS, CHANNELS, 2 * CHANNELS), dim=-1
        )
        return first * second + third[..., :CHANNELS]


def test_a_linear_layer_that_is_cut_in_halves_is_exported_as_two(tmp_path: Path) -> None:
    module = Gated()
    path = export(module, ("batch", "num_frames", "height", "width", CHANNELS), tmp_path)
    weights = {tuple(tensor.dims) for tensor in load_graph(path).initializer}
    assert (CHANNELS, 2 * CHANNELS) in weights
    assert (CHANNELS, 4 * CHANNELS) not in weights
    assert (2 * CHANNELS, 4 * CHANNELS) in weights  # is cut in three
    inputs = draw_inputs(TEMPORAL_INPUTS, SIZES)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs["sample"])).numpy()
    assert_close(expected, open_graph(path).run(None, inputs)[0])


def test_unknown_rewrites_are_refused_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match=r"'fast' is unknown: use fused-attention, .*none"):
        check_rewrites(["fast"])
    with pytest.raises(ParameterError, match="add fused-attention"):
        check_rewrites(["shared-text"])
    assert check_rewrites([]) == ()
    assert check_rewrites(None) == tuple(REWRITES)
    assert check_rewrites(["joined-norms", "fused-attention"]) == (
        "fused-attention",
        "joined-norms",
    )


def export(
    module: torch.nn.Module, shape: Shape, folder: Path, *, float16_weights: bool = False
) -> Path:
    """Export a module as a component is; `shape` is that of its output."""
    component = ComponentExport(
        name="component",
        module=module.half().float().eval(),
        inputs=ATTENTION_INPUTS if isinstance(module, Attention) else TEMPORAL_INPUTS,
        outputs={"result": TensorRecord("float32", shape)},
        trace_sizes=SIZES,
        parity_sizes=(),
    )
    model = make_graph(component)
    if float16_weights:
        assert store_weights_as_float16(model) > 0
    save_graph(model, folder / "model.onnx")
    return folder / "model.onnx"


def compare(folder: Path, inputs: dict[str, TensorRecord]) -> None:
    """Compare the two graphs in a folder at two sizes."""
    plain, rewritten = (open_graph(folder / name) for name in ("model.onnx", "model_cpu.onnx"))
    for sizes in (SIZES, {axis: size + 1 for axis, size in SIZES.items()}):
        arrays = draw_inputs(inputs, sizes)
        assert_close(plain.run(None, arrays)[0], rewritten.run(None, arrays)[0])


def draw_inputs(inputs: dict[str, TensorRecord], sizes: dict[str, int]) -> Arrays:
    """Return random arrays for a graph's inputs."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for name, tensor in inputs.items():
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        if tensor.dtype == "int64":
            arrays[name] = random.integers(0, 5, shape, dtype=np.int64)
        else:
            arrays[name] = random.standard_normal(shape, dtype=np.float32)
    return arrays


def open_graph(path: Path) -> Any:
    """Return a session."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def load_graph(path: Path) -> onnx.GraphProto:
    """Return a graph without its weights."""
    return onnx.load(str(path), load_external_data=False).graph


def count_operators(path: Path) -> Counter[str]:
    """Return how many nodes of each type a graph has."""
    return Counter(node.op_type for node in load_graph(path).node)


def list_places(path: Path) -> set[tuple[str, str, str]]:
    """Return where the weights of a graph lie: file, offset, length."""
    places = set()
    for tensor in load_graph(path).initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            places.add((place["location"], place["offset"], place["length"]))
    return places


def assert_close(expected: NDArray[Any], found: NDArray[Any]) -> None:
    """Compare one output of two graphs."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    if expected.dtype == np.uint8:
        assert difference <= LEVELS_TOLERANCE
    else:
        assert difference <= RELATIVE_TOLERANCE * np.abs(expected).max()
