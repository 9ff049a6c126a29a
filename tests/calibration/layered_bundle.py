"""The hand-made bundle with layers to calibrate, and a word that breaks its denoiser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.runtime import hand_made_bundle
from tests.runtime.hand_made_bundle import CHANNELS, EMBEDDING, FEATURES, WORDS

LAYER = "unet.mix.weight"
# Its embedding is NaN.
BROKEN_WORD = "square"
# Of the deep bundle: its layers that may be int8, by component.
TEXT_LAYER, DECODER_LAYER = "text_encoder.project.weight", "vae_decoder.mix.weight"
UNET_LAYERS = ("unet.text.weight", "unet.mix.weight", "unet.up.weight", "unet.down.weight")
_WIDTH = 16
WEIGHT = np.random.default_rng(3).normal(size=(CHANNELS, CHANNELS, 1, 1, 1)).astype(np.float32) / 4


def make_bundle(path: Path) -> Path:
    """Write the bundle into a new folder."""
    hand_made_bundle.make_bundle(path)
    hand_made_bundle.save_graph(make_unet(), path / "unet" / "model.onnx")
    embedding = EMBEDDING.copy()
    embedding[WORDS.index(BROKEN_WORD)] = np.nan
    encoder = hand_made_bundle.make_text_encoder()
    encoder.graph.initializer[0].raw_data = embedding.tobytes()
    hand_made_bundle.save_graph(encoder, path / "text_encoder" / "model.onnx")
    manifest = json.loads((path / "manifest.json").read_text())
    hand_made_bundle.write_manifest(path, manifest)
    return path


def make_unet(weight: NDArray[np.float32] = WEIGHT):
    """A convolution of the sample, shifted by the text and the timestep."""
    latents = ["B", CHANNELS, "F", "h", "w"]
    return hand_made_bundle._model(
        [
            helper.make_node("Conv", ["sample", LAYER], ["mixed"]),
            helper.make_node("ReduceMean", ["encoder_hidden_states"], ["text"], keepdims=0),
            helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["time", "timestep_weight"], ["weighted_time"]),
            helper.make_node("Add", ["text", "weighted_time"], ["shift"]),
            helper.make_node("Add", ["mixed", "shift"], ["out_sample"]),
        ],
        [
            hand_made_bundle._tensor("sample", TensorProto.FLOAT, latents),
            hand_made_bundle._tensor("timestep", TensorProto.INT64, []),
            hand_made_bundle._tensor(
                "encoder_hidden_states", TensorProto.FLOAT, ["B", "S", FEATURES]
            ),
        ],
        [hand_made_bundle._tensor("out_sample", TensorProto.FLOAT, latents)],
        {LAYER: weight, "timestep_weight": np.float32(1e-4)},
    )


def make_deep_bundle(path: Path) -> Path:
    """Write a bundle whose components have layers that can be int8 into a new folder."""
    make_bundle(path)
    encoder = onnx.load(path / "text_encoder" / "model.onnx")
    encoder.graph.node[0].output[0] = "embedded"
    encoder.graph.node.append(
        helper.make_node("MatMul", ["embedded", TEXT_LAYER], ["prompt_embeds"])
    )
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(FEATURES, FEATURES)))[0]
    encoder.graph.initializer.append(
        numpy_helper.from_array(rotation.astype(np.float32), TEXT_LAYER)
    )
    hand_made_bundle.save_graph(encoder, path / "text_encoder" / "model.onnx")
    hand_made_bundle.save_graph(make_deep_unet(), path / "unet" / "model.onnx")
    hand_made_bundle.save_graph(make_deep_decoder(), path / "vae_decoder" / "model.onnx")
    hand_made_bundle.write_manifest(path, json.loads((path / "manifest.json").read_text()))
    return path


def make_deep_unet() -> onnx.ModelProto:
    """Convolutions at both ends and in the middle, and linear layers of channels and of time."""
    kernel = {"kernel_shape": [1, 3, 3], "pads": [0, 1, 1, 0, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["sample", "unet.conv_in.weight"], ["first"], **kernel),
        helper.make_node("MatMul", ["encoder_hidden_states", "unet.text.weight"], ["keys"]),
        helper.make_node("ReduceMean", ["keys"], ["text"], keepdims=0),
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["time", "one_row"], ["row"]),
        helper.make_node("MatMul", ["row", "unet.time.weight"], ["embedded"]),
        helper.make_node("Reshape", ["embedded", "as_channels"], ["shifts"]),
        helper.make_node("Add", ["text", "shifts"], ["shift"]),
        helper.make_node("Add", ["first", "shift"], ["shifted"]),
        helper.make_node("Tanh", ["shifted"], ["bounded"]),
        helper.make_node("Conv", ["bounded", "unet.mix.weight"], ["mixed"], **kernel),
        helper.make_node("Transpose", ["mixed"], ["last"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("MatMul", ["last", "unet.up.weight"], ["product"]),
        helper.make_node("Add", ["product", "unet.up.bias"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "unet.down.weight"], ["narrow"]),
        helper.make_node("Transpose", ["narrow"], ["back"], perm=[0, 4, 1, 2, 3]),
        helper.make_node("Conv", ["back", "unet.conv_out.weight"], ["out_sample"], **kernel),
    ]
    plain = make_unet()
    shapes = {
        "conv_in": (_WIDTH, CHANNELS, 1, 3, 3),
        "mix": (_WIDTH, _WIDTH, 1, 3, 3),
        "conv_out": (CHANNELS, _WIDTH, 1, 3, 3),
        "up": (_WIDTH, 4 * _WIDTH),
        "down": (4 * _WIDTH, _WIDTH),
        "text": (FEATURES, FEATURES),
        "time": (1, _WIDTH),
    }
    random = np.random.default_rng(4)
    constants: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {}
    for name, shape in shapes.items():
        size = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        constants[f"unet.{name}.weight"] = _draw(random, shape, float(size) ** -0.5)
    constants["unet.time.weight"] *= np.float32(1e-3)
    constants["unet.up.bias"] = _draw(random, (4 * _WIDTH,), 0.1)
    constants["one_row"] = np.array([1, 1])
    constants["as_channels"] = np.array([1, _WIDTH, 1, 1, 1])
    return hand_made_bundle._model(nodes, plain.graph.input, plain.graph.output, constants)


def make_deep_decoder() -> onnx.ModelProto:
    """The hand-made decoder with a layer before the one that makes colours."""
    decoder = hand_made_bundle.make_vae_decoder()
    transpose, colours = decoder.graph.node[:2]
    colours.input[0] = "active"
    nodes = [
        transpose,
        helper.make_node("MatMul", ["last", DECODER_LAYER], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["active"]),
        *decoder.graph.node[1:],
    ]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in decoder.graph.initializer}
    constants[DECODER_LAYER] = _draw(np.random.default_rng(5), (CHANNELS, CHANNELS), 0.5)
    return hand_made_bundle._model(nodes, decoder.graph.input, decoder.graph.output, constants)


def _draw(random: np.random.Generator, shape: tuple[int, ...], size: float) -> NDArray[np.float32]:
    return (random.normal(size=shape) * size).astype(np.float32)
