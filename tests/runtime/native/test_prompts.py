"""Baked prompts, and prompts that were encoded before, are in C what they are in Python."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.baked_prompts import FORMAT_NAME, PROMPTS_PATH
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.safetensors_file import MAXIMUM_HEADER_BYTES
from tests.runtime import baked_bundles
from tests.runtime.hand_made_bundle import FEATURES, write_manifest
from tests.runtime.native.native_bundles import EMBEDDING, MAX_LENGTH, PAD_TOKEN_ID, read_manifest
from tests.runtime.native.parity import check_parity, generate_with_both
from tests.runtime.native.same_errors import check_same

TEXTS = ("a red circle", "a blue square moves left, \N{LARGE ORANGE CIRCLE}", "")
# More than the cache keeps.
MANY_PROMPTS = 65


def encode(library: Library, bundle: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the text encoder of the bundle makes of the texts, float32 [N, S, D]."""
    with NativePipeline.open(bundle, library=library) as pipeline:
        ids = [pipeline.tokenize(text) for text in TEXTS]
    return EMBEDDING[np.array([i + [PAD_TOKEN_ID] * (MAX_LENGTH - len(i)) for i in ids])]


@pytest.fixture
def baked_bundle(library: Library, own_bundle: Path) -> Path:
    """A copy of the bundle of texts with baked prompts."""
    embeds = encode(library, own_bundle)
    baked_bundles.bake(own_bundle, {"prompt_embeds": embeds}, texts=TEXTS)
    return own_bundle


@pytest.fixture
def small_bundle(baked_bundle: Path) -> Path:
    """The same without a text encoder."""
    baked_bundles.drop_text_encoder(baked_bundle)
    return baked_bundle


# ---- baked prompts


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"prompt": TEXTS[1]}, id="another"),
        pytest.param({"negative_prompt": TEXTS[1]}, id="negative"),
        pytest.param({"guidance_scale": 1.0, "prompt": ""}, id="empty"),
        pytest.param({"options": {"memory": "low"}}, id="low-memory"),
    ],
)
def test_a_baked_prompt_needs_no_text_encoder(
    library: Library, text_bundle: Path, small_bundle: Path, changes: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"prompt": TEXTS[0], "seed": 4, **changes}
    pair = generate_with_both(library, small_bundle, **arguments)
    check_parity(pair)
    arguments.pop("options", None)
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        encoded = pipeline.generate(**arguments)
    np.testing.assert_array_equal(pair.native.frames, encoded.frames)


def test_a_baked_text_is_taken_from_there_and_others_from_the_text_encoder(
    library: Library, text_bundle: Path, own_bundle: Path
) -> None:
    embeds = encode(library, own_bundle) + np.float32(1)
    baked_bundles.bake(own_bundle, {"prompt_embeds": embeds}, texts=TEXTS)
    negative: dict[str, Any] = {"negative_prompt": "a star", "seed": 4}
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        plain = [pipeline.generate(text, **negative).frames for text in (TEXTS[0], "a square")]
    pairs = [
        generate_with_both(library, own_bundle, prompt=text, **negative)
        for text in (TEXTS[0], "a square")
    ]
    for pair in pairs:
        check_parity(pair)
    assert (pairs[0].native.frames != plain[0]).any()
    np.testing.assert_array_equal(pairs[1].native.frames, plain[1])


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a green star"},
        {"prompt": "A red circle"},
        {"prompt": "a red circle "},
        {"prompt": TEXTS[0], "negative_prompt": "a 'star'"},
    ],
    ids=lambda arguments: ", ".join(arguments.values()),
)
def test_a_text_that_is_not_baked_is_refused_as_in_python(
    library: Library, small_bundle: Path, arguments: dict[str, Any]
) -> None:
    check_same_generation(library, small_bundle, ParameterError, arguments)


def test_one_baked_prompt_is_named_as_one(library: Library, own_bundle: Path) -> None:
    embeds = encode(library, own_bundle)[:1]
    baked_bundles.bake(own_bundle, {"prompt_embeds": embeds}, texts=TEXTS[:1])
    baked_bundles.drop_text_encoder(own_bundle)
    check_same_generation(library, own_bundle, ParameterError, {"prompt": "a star"})


def check_same_generation(
    library: Library,
    bundle: Path,
    error: type[BundleError | ParameterError],
    arguments: Mapping[str, Any],
    *,
    same_way_out: bool = True,
) -> None:
    with (
        NativePipeline.open(bundle, library=library) as native,
        VideoPipeline.open(bundle) as python,
    ):
        check_same(
            lambda: native.generate(**arguments),
            lambda: python.generate(**arguments),
            error,
            same_way_out=same_way_out,
        )


# ---- damaged files

KNOWN = {"format": FORMAT_NAME, "texts": json.dumps(TEXTS)}
SHAPE = (3, MAX_LENGTH, FEATURES)


@pytest.mark.parametrize(
    ("shapes", "metadata"),
    [
        ({"prompt_embeds": SHAPE}, {**KNOWN, "format": "mutoscope-prompts-2"}),
        ({"prompt_embeds": SHAPE}, {"texts": "[]"}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": "["}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": "{}"}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": "[]"}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": '["a", 1, "b"]'}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": '["a", "b", "a"]'}),
        ({"prompt_embeds": SHAPE}, {**KNOWN, "texts": "[" * 100_000}),
        ({"prompt_embeds": SHAPE}, {"format": FORMAT_NAME}),
        ({"prompt_embeds": (2, *SHAPE[1:])}, KNOWN),
        ({"prompt_embeds": (3,)}, KNOWN),
        ({"prompt_embeds": (3, FEATURES)}, KNOWN),
        ({"prompt_embeds": (3, MAX_LENGTH, FEATURES + 1)}, KNOWN),
        ({"other": SHAPE}, KNOWN),
    ],
)
def test_baked_prompts_that_do_not_fit_are_refused_as_in_python(
    library: Library,
    own_bundle: Path,
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    baked_bundles.bake(own_bundle, tensors, metadata)
    is_other_format = metadata.get("format") != FORMAT_NAME
    check_same_generation(
        library, own_bundle, BundleError, {"prompt": TEXTS[0]}, same_way_out=not is_other_format
    )


def make_file(header: object, num_values: int = 0, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(text) if length is None else length)
    return start + text + bytes(4 * num_values)


def make_tensor(**fields: object) -> dict[str, object]:
    return {"t": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8], **fields}}


def change_last_value(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("nan"))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "short": lambda _data: b"\1\0\0",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "not a number": change_last_value,
    "no values": lambda _data: make_file({}),
    "length too large": lambda _data: make_file({}, length=3),
    "length enormous": lambda _data: make_file({}, length=2**64 - 1),
    "no JSON": lambda _data: make_file(b"{]"),
    "a list": lambda _data: make_file([]),
    "deep": lambda _data: make_file(b"[" * 100_000),
    "no UTF-8": lambda _data: make_file(b'{"\xff": 1}'),
    "a name twice": lambda _data: make_file(b'{"a": {}, "a": {}}'),
    "an inner name twice": lambda _data: make_file(b'{"a": {"b": 1, "b": 2}}'),
    "metadata a list": lambda _data: make_file({"__metadata__": []}),
    "metadata of numbers": lambda _data: make_file({"__metadata__": {"a": 1}}),
    "metadata null": lambda _data: make_file({"__metadata__": None}),
    "tensor a number": lambda _data: make_file({"t": 1}),
    "float16": lambda _data: make_file(make_tensor(dtype="F16"), 2),
    "dtype null": lambda _data: make_file(make_tensor(dtype=None), 2),
    "no shape": lambda _data: make_file(make_tensor(shape=None), 2),
    "shape of texts": lambda _data: make_file(make_tensor(shape=["1"]), 2),
    "shape of true": lambda _data: make_file(make_tensor(shape=[True, 2]), 2),
    "length zero": lambda _data: make_file(make_tensor(shape=[0, 2]), 2),
    "length below": lambda _data: make_file(make_tensor(shape=[-1, -2]), 2),
    "length enormous in shape": lambda _data: make_file(make_tensor(shape=[2**62, 2**62]), 2),
    "nine axes": lambda _data: make_file(make_tensor(shape=[1, 2, *[1] * 7]), 2),
    "axes enormous": lambda _data: make_file(make_tensor(shape=[2**62] * 100_000), 2),
    "a name of two lines": lambda _data: make_file({"a\nb": 1}),
    "header above the limit": lambda _data: make_file(b" " * (MAXIMUM_HEADER_BYTES + 1)),
    "length beyond": lambda _data: make_file(make_tensor(shape=[2**64]), 2),
    "one offset": lambda _data: make_file(make_tensor(data_offsets=[0]), 2),
    "offsets turned": lambda _data: make_file(make_tensor(data_offsets=[8, 0]), 2),
    "offsets enormous": lambda _data: make_file(make_tensor(data_offsets=[0, 2**63 - 1]), 2),
    "other size": lambda _data: make_file(make_tensor(shape=[1, 3]), 2),
    "a gap": lambda _data: make_file(make_tensor(data_offsets=[4, 12]), 3),
    "an overlap": lambda _data: make_file(
        {**make_tensor(), "u": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 2
    ),
    "values beyond": lambda _data: make_file(make_tensor(), 1),
    "values left over": lambda _data: make_file(make_tensor(), 3),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_file_of_baked_prompts_is_refused_as_in_python(
    library: Library, baked_bundle: Path, kind: str
) -> None:
    path = baked_bundle / PROMPTS_PATH
    path.write_bytes(DAMAGED[kind](path.read_bytes()))
    write_manifest(baked_bundle, read_manifest(baked_bundle))
    # The last text, whose values are the last.
    check_same_generation(
        library,
        baked_bundle,
        BundleError,
        {"prompt": TEXTS[-1], "guidance_scale": 1.0},
        same_way_out=kind != "no values",
    )


def test_a_file_of_baked_prompts_that_changed_is_refused_as_in_python(
    library: Library, baked_bundle: Path
) -> None:
    path = baked_bundle / PROMPTS_PATH
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    check_same_generation(library, baked_bundle, BundleError, {"prompt": TEXTS[0]})


def test_a_text_encoder_may_not_make_more_than_is_baked(
    library: Library, baked_bundle: Path
) -> None:
    manifest = read_manifest(baked_bundle)
    outputs = manifest["components"]["text_encoder"]["outputs"]
    outputs["pooled_prompt_embeds"] = {"dtype": "float32", "shape": ["batch", FEATURES]}
    write_manifest(baked_bundle, manifest)
    check_same_generation(library, baked_bundle, BundleError, {"prompt": TEXTS[0]})


# ---- prompts that were encoded before


def break_text_encoder(bundle: Path) -> None:
    """Whoever loads it now fails."""
    path = bundle / "text_encoder" / "model.onnx"
    path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_prompt_is_encoded_once(library: Library, own_bundle: Path, memory: str) -> None:
    with NativePipeline.open(own_bundle, library=library, memory=memory) as pipeline:
        first = pipeline.generate(TEXTS[0], seed=1)
        assert first.timings.seconds_text_encoder > 0
        pipeline.unload()
        break_text_encoder(own_bundle)
        again = pipeline.generate(TEXTS[0], seed=1)
        assert again.timings.seconds_text_encoder == 0
        # The negative prompt was encoded too, and stands for an empty prompt.
        pipeline.generate("", seed=1)
        with pytest.raises(BundleError, match=r"text_encoder/model\.onnx does not match"):
            pipeline.generate("a star", seed=1)
    np.testing.assert_array_equal(first.frames, again.frames)


def test_the_prompts_that_were_not_used_for_long_are_encoded_again(
    library: Library, own_bundle: Path
) -> None:
    small: dict[str, Any] = {
        "guidance_scale": 1.0, "num_inference_steps": 1, "num_frames": 1, "height": 16, "width": 16,
    }  # fmt: skip
    with NativePipeline.open(own_bundle, library=library) as pipeline:
        for number in range(MANY_PROMPTS):
            pipeline.generate(f"a red circle {number}", **small)
        pipeline.unload()
        break_text_encoder(own_bundle)
        pipeline.generate(f"a red circle {MANY_PROMPTS - 1}", **small)
        pipeline.generate("a red circle 1", **small)
        with pytest.raises(BundleError, match=r"text_encoder/model\.onnx does not match"):
            pipeline.generate("a red circle 0", **small)
