"""The hand-made bundle with a denoiser that has a layer to calibrate, and a word that breaks it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.runtime import hand_made_bundle
from tests.runtime.hand_made_bundle import CHANNELS, EMBEDDING, FEATURES, WORDS

LAYER = "unet.mix.weight"
# Its embedding is NaN.
BROKEN_WORD = "square"
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
