"""Hand-made bundles that libmutoscope can run whole: one of texts, one of images; without torch.

The hand-made bundle of the runtime's tests has a tokenizer of whole words. Here it has that of the
shipped bundle, a condition, and an image in place of the text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.decoding import PROCESS_BYTES
from tests.runtime import hand_made_bundle, reuse_bundle
from tests.runtime.hand_made_bundle import FEATURES

TOKENIZER = "tokenizer/tokenizer.json"
MAX_LENGTH = 16
# Of the shipped tokenizer.
NUM_TOKENS, PAD_TOKEN_ID = 622, 621
EMBEDDING = np.random.default_rng(8).normal(size=(NUM_TOKENS, FEATURES)).astype(np.float32)
CONDITION = "strength"
IMAGE_SOURCE = "image_pixels"
# What both runtimes count for a process before any graph: the same limit on memory leaves more of
# it in C.
_PLAN = Path(__file__).resolve().parents[3] / "runtime" / "native" / "src" / "decode_plan.cpp"
_MEBIBYTES = re.findall(r"kProcessBytes = ([\d.]+) \* kMib;", _PLAN.read_text(encoding="utf-8"))
NATIVE_PROCESS_BYTES = int(float(_MEBIBYTES[0]) * 2**20)
SPARED_BYTES = PROCESS_BYTES - NATIVE_PROCESS_BYTES
# So little that the hand-made bundles decode their clips in several runs.
CHUNKS_LIMIT = NATIVE_PROCESS_BYTES + 2**20


def make_text_bundle(path: Path) -> Path:
    """Write a bundle that makes videos of a text, and takes a number, into a new folder."""
    hand_made_bundle.make_bundle(path)
    unet = hand_made_bundle.make_unet()
    _add_to_shift(unet, CONDITION, [], 0.05)
    hand_made_bundle.save_graph(unet, path / "unet" / "model.onnx")
    manifest = read_manifest(path)
    manifest["components"]["unet"]["inputs"][CONDITION] = {
        "dtype": "float32",
        "shape": [],
        "source": CONDITION,
    }
    manifest["conditions"] = {
        CONDITION: {"default": 1, "minimum": 0, "maximum": 10, "description": "How bright"}
    }
    _replace_tokenizer(path, manifest)
    return path


def make_rows_bundle(path: Path) -> Path:
    """Write a bundle whose schedules run several denoisers into a new folder.

    Its schedules, beside the hand-made ones: "reuse", features of whole rows in later ones;
    "interval", guidance in some rows; "mixed", both, with noise; "few-step", a denoiser with its
    guidance inside.
    """
    hand_made_bundle.make_bundle(path)
    _replace_tokenizer(path, read_manifest(path))
    reuse_bundle.add_denoisers(path)
    manifest = read_manifest(path)
    graph_sha256 = manifest["files"]["unet/model.onnx"]["sha256"]
    reuse = ("unet", "unet_reuse", "unet_reuse", None, "unet_reuse")
    add, rows = reuse_bundle.add_schedule, reuse_bundle.make_rows
    add(path, "reuse", rows(*reuse), graph_sha256=graph_sha256)
    add(path, "interval", rows(None, None, None, None, unguided=(0, 3)))
    mixed = rows("unet", "unet_reuse", "unet_reuse", "unet_few_step", unguided=(2, 3))
    noise = hand_made_bundle.make_table("noisy", 1, 0.1).rows[0].updates
    mixed[1] = dataclasses.replace(mixed[1], noise_draws=2, updates=noise)
    add(path, "mixed", mixed)
    for count in (1, 2, 4):
        few = rows(*[None] * count, unguided=tuple(range(count)))
        add(path, "few-step", few, denoiser="unet_few_step")
    return path


def _replace_tokenizer(path: Path, manifest: dict[str, Any]) -> None:
    """Give a hand-made bundle the tokenizer of the shipped one, and write its manifest."""
    shutil.copyfile(DEFAULT_BUNDLE_PATH / TOKENIZER, path / TOKENIZER)
    encoder = hand_made_bundle._model(
        [helper.make_node("Gather", ["embedding", "input_ids"], ["prompt_embeds"])],
        [hand_made_bundle._tensor("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [
            hand_made_bundle._tensor(
                "prompt_embeds", TensorProto.FLOAT, ["batch", "sequence", FEATURES]
            )
        ],
        {"embedding": EMBEDDING},
    )
    hand_made_bundle.save_graph(encoder, path / "text_encoder" / "model.onnx")
    manifest["tokenizers"]["input_ids"] |= {
        "max_length": MAX_LENGTH,
        "pad_token_id": PAD_TOKEN_ID,
    }
    hand_made_bundle.write_manifest(path, manifest)


def make_image_bundle(path: Path) -> Path:
    """Write a bundle that makes videos of an image, with noise of its encoder, into a new folder.

    Guidance leaves the image out in the unconditional pass.
    """
    hand_made_bundle.make_bundle(path)
    shutil.rmtree(path / "text_encoder")
    shutil.rmtree(path / "tokenizer")
    image = ["batch", 3, "height", "width"]
    encoder = hand_made_bundle._model(
        [
            helper.make_node("Mul", ["noise", "noise_weight"], ["weighted"]),
            helper.make_node("Add", ["image", "weighted"], ["noisy"]),
            helper.make_node("ReduceMean", ["noisy", "axes"], ["image_latents"], keepdims=0),
        ],
        [
            hand_made_bundle._tensor("image", TensorProto.FLOAT, image),
            hand_made_bundle._tensor("noise", TensorProto.FLOAT, image),
        ],
        [hand_made_bundle._tensor("image_latents", TensorProto.FLOAT, ["batch", 3])],
        {"noise_weight": np.float32(0.5), "axes": np.array([2, 3])},
    )
    hand_made_bundle.save_graph(encoder, path / "vae_encoder" / "model.onnx")
    unet = hand_made_bundle.make_unet()
    (text,) = (node for node in unet.graph.node if "encoder_hidden_states" in node.input)
    text.input[:] = ["image_latents"]
    del unet.graph.input[2]
    unet.graph.input.append(
        hand_made_bundle._tensor("image_latents", TensorProto.FLOAT, ["batch", 3])
    )
    _add_to_shift(unet, "frame_rate", [], 0.01)
    hand_made_bundle.save_graph(unet, path / "unet" / "model.onnx")
    hand_made_bundle.write_manifest(path, _make_image_manifest(read_manifest(path)))
    return path


def _make_image_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    components = manifest.pop("components")
    del components["text_encoder"]
    image = ["batch", 3, "height", "width"]
    encoder = hand_made_bundle._component(
        "vae_encoder",
        {"image": ("float32", image, IMAGE_SOURCE), "noise": ("float32", image, "noise")},
        {"image_latents": ("float32", ["batch", 3], None)},
    )
    inputs = components["unet"]["inputs"]
    del inputs["encoder_hidden_states"]
    inputs["image_latents"] = {
        "dtype": "float32",
        "shape": ["batch", 3],
        "source": "image_latents",
        "unconditional": "zeros",
    }
    inputs["frame_rate"] = {"dtype": "float32", "shape": [], "source": "frame_rate"}
    operations = [
        {"kind": "resize_and_crop", "height": "height", "width": "width", "filter": "bilinear"},
        {"kind": "normalize", "mean": [0.5] * 3, "std": [0.5] * 3},
    ]
    return manifest | {
        "components": {"vae_encoder": encoder, **components},
        "tokenizers": {},
        "images": {IMAGE_SOURCE: {"operations": operations}},
    }


def _add_to_shift(unet: onnx.ModelProto, name: str, shape: list[Any], weight: float) -> None:
    """Let an input of the hand-made denoiser shift its output, in place."""
    nodes = unet.graph.node
    (add,) = (node for node in nodes if list(node.output) == ["shift"])
    add.output[:] = ["shift_without"]
    position = list(nodes).index(add) + 1
    nodes.insert(position, helper.make_node("Mul", [name, f"{name}_weight"], [f"scaled_{name}"]))
    nodes.insert(
        position + 1, helper.make_node("Add", ["shift_without", f"scaled_{name}"], ["shift"])
    )
    unet.graph.input.append(hand_made_bundle._tensor(name, TensorProto.FLOAT, shape))
    unet.graph.initializer.append(
        onnx.numpy_helper.from_array(np.asarray(np.float32(weight)), f"{name}_weight")
    )


def make_image(height: int = 20, width: int = 30) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture of random pixels, uint8 [H, W, 3]."""
    return np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle, parsed."""
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return manifest
