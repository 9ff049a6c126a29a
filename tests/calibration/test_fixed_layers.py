from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from mutoscope.calibration.fixed_layers import CONDITIONING, FIRST, LAST, find_fixed_layers
from mutoscope.calibration.layers import find_layers
from tests.calibration.text_graphs import save_text_graph

# Fixtures of bundles, and the layers that make the embedding of the timestep and of what is given
# as numbers beside it.
EMBEDDINGS = {
    "tiny_bundle": r"time_embedding|time_emb_proj",
    "sdxl_bundle": r"time_embedding|time_emb_proj|add_embedding",
    "modelscope_bundle": r"time_embedding|time_emb_proj",
    "i2vgen_bundle": r"time_embedding|time_emb_proj|fps_embedding",
    "svd_bundle": r"time_embedding|time_emb_proj|add_embedding|time_pos_embed",
}
# What sees inputs: I2VGen-XL embeds its picture in two ways.
FIRST_LAYERS = {fixture: {"unet.conv_in.weight"} for fixture in EMBEDDINGS}
FIRST_LAYERS["i2vgen_bundle"] |= {
    "unet.image_latents_context_embedding.0.weight", "unet.image_latents_proj_in.0.weight",
}  # fmt: skip


def find_reasons(path: Path) -> dict[str, set[str]]:
    """The names of the fixed layers, by the reason."""
    model = onnx_ir.load(path)
    found: dict[str, set[str]] = {FIRST: set(), LAST: set(), CONDITIONING: set()}
    for name, reason in find_fixed_layers(model, find_layers(model)).items():
        found[reason].add(name)
    return found


@pytest.mark.parametrize("graph", ["model.onnx", "model_cpu.onnx"])
@pytest.mark.parametrize("fixture", EMBEDDINGS)
def test_ends_and_embeddings_of_every_denoiser_are_fixed_and_nothing_else(
    fixture: str, graph: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(fixture) / "unet" / graph
    names = {layer.name for layer in find_layers(onnx_ir.load(path))}
    assert find_reasons(path) == {
        FIRST: FIRST_LAYERS[fixture],
        LAST: {"unet.conv_out.weight"},
        CONDITIONING: {name for name in names if re.search(EMBEDDINGS[fixture], name)},
    }


def test_ends_of_a_decoder_are_fixed(tiny_bundle: Path) -> None:
    assert find_reasons(tiny_bundle / "vae_decoder" / "model.onnx") == {
        FIRST: {"vae.post_quant_conv.weight"},
        LAST: {"vae.decoder.conv_out.weight"},
        CONDITIONING: set(),
    }


def test_nothing_of_a_text_encoder_is_fixed(tiny_bundle: Path) -> None:
    found = find_reasons(tiny_bundle / "text_encoder" / "model.onnx")
    assert found == {FIRST: set(), LAST: set(), CONDITIONING: set()}


GRAPH = """(float[b, 2, h, w] latents, float[b] timestep, float[b, s, 2] text, float[b, 2] pooled)
    => (float[b, 2, h, w] result, float[b, s, 2] projected, float[b, 2] embedded) {
    times = Unsqueeze (timestep, axes)
    row = Concat <axis = 1> (times, times)
    sum = Add (row, pooled)
    embedding = MatMul (sum, embed)
    embedded = Relu (embedding)
    key = MatMul (text, to_k)
    projected = Relu (key)
    a = Conv (latents, first)
    b = Relu (a)
    c = Conv (b, middle)
    d = Concat <axis = 1> (latents, c)
    e = Conv (d, beside)
    f = Conv (e, last)
    result = Relu (f)
}"""


def test_reasons_follow_from_what_lies_before_and_behind(tmp_path: Path) -> None:
    matrix, square = np.ones((2, 2), np.float32), np.ones((2, 2, 1, 1), np.float32)
    weights = {
        "embed": matrix, "to_k": matrix, "first": square, "middle": square, "last": square,
        "beside": np.ones((2, 4, 1, 1), np.float32), "axes": np.array([1]),
    }  # fmt: skip
    found = find_reasons(save_text_graph(tmp_path / "model.onnx", GRAPH, weights))
    assert found == {FIRST: {"first", "beside"}, LAST: {"last"}, CONDITIONING: {"embed"}}
