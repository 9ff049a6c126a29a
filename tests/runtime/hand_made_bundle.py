"""A tiny bundle made by hand, so that the runtime's tests need no export.

Its "text encoder" looks embeddings up, its "unet" is linear, its "vae decoder" mixes channels and
repeats pixels eight times. Each is simple enough to be written again in numpy by a test.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable, ScheduleUpdate

WORDS = ["<s>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "moves", "left", "right"]
MAX_LENGTH = 8
FEATURES = 6
CHANNELS = 4
SCALE = 8
SAMPLE_WEIGHT, TEXT_WEIGHT, TIMESTEP_WEIGHT = 0.25, 0.5, 1e-4
_DATA = np.random.default_rng(5)
EMBEDDING = _DATA.normal(size=(len(WORDS), FEATURES)).astype(np.float32)
COLOURS = (_DATA.normal(size=(CHANNELS, 3)) / 2).astype(np.float32)

# What the decoder costs: more than it does, so that limits can be tried on small clips.
DECODER = {
    "independent_frames": True,
    "bytes_per_pixel": 200.0,
    "bytes_per_latent_pair": 0.0,
    "weights_bytes": 1000,
}


def make_bundle(path: Path) -> Path:
    """Write the bundle into a new folder."""
    for name, graph in (
        ("text_encoder", make_text_encoder()),
        ("unet", make_unet()),
        ("vae_decoder", make_vae_decoder()),
    ):
        save_graph(graph, path / name / "model.onnx")
    (path / "tokenizer").mkdir()
    make_tokenizer().save(str(path / "tokenizer" / "tokenizer.json"))
    (path / "schedules").mkdir()
    schedules: dict[str, dict[str, str]] = {}
    for scheduler, noise_scale, counts in (
        ("ddim", 0.0, (1, 2, 3, 4, 8)),
        ("euler-ancestral", 0.1, (1, 2, 3, 4)),
    ):
        for count in counts:
            name = f"schedules/{scheduler}_{count}.json"
            make_table(scheduler, count, noise_scale).save(path / name)
            schedules.setdefault(scheduler, {})[str(count)] = name
    write_manifest(path, make_manifest(schedules))
    return path


def make_manifest(schedules: dict[str, dict[str, str]]) -> dict[str, Any]:
    latents = ["batch", CHANNELS, "num_frames", "latent_height", "latent_width"]
    tokens = ["batch", "sequence", FEATURES]
    return {
        "format_version": 1,
        "name": "hand-made",
        "family": "none",
        "components": {
            "text_encoder": _component(
                "text_encoder",
                {"input_ids": ("int64", ["batch", "sequence"], "input_ids")},
                {"prompt_embeds": ("float32", tokens, None)},
            ),
            "unet": _component(
                "unet",
                {
                    "sample": ("float32", latents, "latents"),
                    "timestep": ("int64", [], "timestep"),
                    "encoder_hidden_states": ("float32", tokens, "prompt_embeds"),
                },
                {"out_sample": ("float32", latents, None)},
            ),
            "vae_decoder": _component(
                "vae_decoder",
                {"latents": ("float32", latents, "latents")},
                {"frames": ("uint8", ["batch", "num_frames", "height", "width", 3], None)},
            )
            | {"decoder": DECODER},
        },
        "tokenizers": {
            "input_ids": {
                "file": "tokenizer/tokenizer.json",
                "max_length": MAX_LENGTH,
                "pad_token_id": 1,
            }
        },
        "latents": {"channels": CHANNELS, "vae_scale_factor_spatial": SCALE},
        "limits": {
            "height": {"minimum": 16, "maximum": 256, "multiple": 16},
            "width": {"minimum": 16, "maximum": 256, "multiple": 16},
            "num_frames": {"minimum": 1, "maximum": 32},
        },
        "defaults": {
            "scheduler": "ddim",
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "height": 32,
            "width": 48,
            "num_frames": 6,
            "frame_rate": 8.0,
        },
        "schedules": schedules,
        "provenance": {"note": "made by hand"},
    }


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the sizes and digests of the files that are there now."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
    manifest["files"] = {
        p.relative_to(path).as_posix(): {
            "size_bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in files
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def make_tokenizer() -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def make_table(scheduler: str, num_inference_steps: int, noise_scale: float) -> ScheduleTable:
    """A made-up schedule: each step takes away a part of the output, and may add noise."""
    rows = []
    for step_index in range(num_inference_steps):
        terms: tuple[Any, ...] = ((0, 0.9), ("model_output", -0.4))
        if noise_scale:
            terms += (("noise", noise_scale),)
        timestep = float(999 - 900 * step_index // num_inference_steps)
        update = ScheduleUpdate(into=0, terms=terms)
        rows.append(ScheduleRow(timestep, 0.5, 1 if noise_scale else 0, (update,)))
    return ScheduleTable(scheduler, num_inference_steps, "epsilon", 2.0, 1, tuple(rows))


def make_text_encoder() -> onnx.ModelProto:
    return _model(
        [helper.make_node("Gather", ["embedding", "input_ids"], ["prompt_embeds"])],
        [_tensor("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [_tensor("prompt_embeds", TensorProto.FLOAT, ["batch", "sequence", FEATURES])],
        {"embedding": EMBEDDING},
    )


def make_unet() -> onnx.ModelProto:
    latents = ["batch", CHANNELS, "num_frames", "latent_height", "latent_width"]
    return _model(
        [
            helper.make_node("Mul", ["sample", "sample_weight"], ["weighted_sample"]),
            helper.make_node("ReduceMean", ["encoder_hidden_states"], ["text"], keepdims=0),
            helper.make_node("Mul", ["text", "text_weight"], ["weighted_text"]),
            helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["time", "timestep_weight"], ["weighted_time"]),
            helper.make_node("Add", ["weighted_text", "weighted_time"], ["shift"]),
            helper.make_node("Add", ["weighted_sample", "shift"], ["out_sample"]),
        ],
        [
            _tensor("sample", TensorProto.FLOAT, latents),
            _tensor("timestep", TensorProto.INT64, []),
            _tensor("encoder_hidden_states", TensorProto.FLOAT, ["batch", "sequence", FEATURES]),
        ],
        [_tensor("out_sample", TensorProto.FLOAT, latents)],
        {
            "sample_weight": np.float32(SAMPLE_WEIGHT),
            "text_weight": np.float32(TEXT_WEIGHT),
            "timestep_weight": np.float32(TIMESTEP_WEIGHT),
        },
    )


def make_vae_decoder() -> onnx.ModelProto:
    return _model(
        [
            helper.make_node("Transpose", ["latents"], ["last"], perm=[0, 2, 3, 4, 1]),
            helper.make_node("MatMul", ["last", "colours"], ["rgb"]),
            helper.make_node("Clip", ["rgb", "low", "high"], ["clipped"]),
            helper.make_node("Mul", ["clipped", "half"], ["scaled"]),
            helper.make_node("Add", ["scaled", "half"], ["shifted"]),
            helper.make_node("Round", ["shifted"], ["rounded"]),
            helper.make_node("Resize", ["rounded", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Cast", ["large"], ["frames"], to=TensorProto.UINT8),
        ],
        [
            _tensor(
                "latents",
                TensorProto.FLOAT,
                ["batch", CHANNELS, "num_frames", "latent_height", "latent_width"],
            )
        ],
        [_tensor("frames", TensorProto.UINT8, ["batch", "num_frames", "height", "width", 3])],
        {
            "colours": COLOURS,
            "low": np.float32(-1),
            "high": np.float32(1),
            "half": np.float32(127.5),
            "scales": np.array([1, 1, SCALE, SCALE, 1], dtype=np.float32),
        },
    )


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    onnx.checker.check_model(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString())


def _component(
    name: str,
    inputs: dict[str, tuple[str, list[Any], str | None]],
    outputs: dict[str, tuple[str, list[Any], str | None]],
) -> dict[str, Any]:
    def records(tensors: dict[str, tuple[str, list[Any], str | None]]) -> dict[str, Any]:
        return {
            tensor: {"dtype": dtype, "shape": shape} | ({"source": source} if source else {})
            for tensor, (dtype, shape, source) in tensors.items()
        }

    return {
        "variants": {"float32": f"{name}/model.onnx"},
        "default_variant": "float32",
        "inputs": records(inputs),
        "outputs": records(outputs),
    }


def _tensor(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[Any] | np.generic],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
