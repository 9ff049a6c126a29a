import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime import main
from mutoscope.runtime.baked_prompts import FORMAT_NAME, PROMPTS_PATH, load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.shape_ranges import make_shape_ranges, parse_clip_range
from tests.runtime.baked_bundles import TEXTS, bake, drop_text_encoder, encode
from tests.runtime.hand_made_bundle import FEATURES, MAX_LENGTH

OPTIONS: dict[str, Any] = {"seed": 1, "num_inference_steps": 2}
TEXTS_JSON = json.dumps(list(TEXTS))


@pytest.fixture
def baked_bundle(own_bundle: Path) -> Path:
    """A bundle with baked prompts and a text encoder."""
    bake(own_bundle)
    return own_bundle


@pytest.fixture
def small_bundle(baked_bundle: Path) -> Path:
    """A bundle with baked prompts and no text encoder."""
    drop_text_encoder(baked_bundle)
    return baked_bundle


def generate(bundle: Path, prompt: str | None = None, **options: Any) -> np.ndarray:
    with VideoPipeline.open(bundle) as pipeline:
        return pipeline.generate(prompt, **OPTIONS, **options).frames


@pytest.mark.parametrize("text", TEXTS)
def test_a_baked_prompt_makes_the_frames_of_the_text_encoder(
    bundle_path: Path, small_bundle: Path, text: str
) -> None:
    np.testing.assert_array_equal(generate(small_bundle, text), generate(bundle_path, text))


def test_a_negative_prompt_may_be_baked_too(bundle_path: Path, small_bundle: Path) -> None:
    expected = generate(bundle_path, TEXTS[0], negative_prompt=TEXTS[1])
    found = generate(small_bundle, TEXTS[0], negative_prompt=TEXTS[1])
    np.testing.assert_array_equal(found, expected)


def test_a_text_that_is_not_baked_is_refused_with_some_that_are(small_bundle: Path) -> None:
    message = (
        "^this bundle has no text encoder, and its 3 baked prompts do not have 'a red square': use "
        "one of 'a red circle', 'a blue square moves left', ''$"
    )
    with pytest.raises(ParameterError, match=message):
        generate(small_bundle, "a red square")
    with pytest.raises(ParameterError, match="do not have 'blue': use one of"):
        generate(small_bundle, TEXTS[0], negative_prompt="blue")
    # To the letter.
    with pytest.raises(ParameterError, match="do not have 'A red circle'"):
        generate(small_bundle, "A red circle")


def test_no_more_than_three_baked_prompts_are_named(own_bundle: Path) -> None:
    texts = ("a", "red", "blue", "circle", "")
    bake(own_bundle, texts=texts)
    drop_text_encoder(own_bundle)
    with pytest.raises(ParameterError, match=r"its 5 .* use one of 'a', 'red', 'blue'$"):
        generate(own_bundle, "left")


def test_one_baked_prompt_is_named_as_one(own_bundle: Path) -> None:
    bake(own_bundle, texts=("a",))
    drop_text_encoder(own_bundle)
    with pytest.raises(ParameterError, match=r"its 1 baked prompt does not have 'b': use 'a'$"):
        generate(own_bundle, "b", guidance_scale=1)


def test_embeddings_work_beside_baked_prompts(small_bundle: Path) -> None:
    embeds = encode_alone(small_bundle)
    found = generate(small_bundle, prompt_embeds=embeds)
    np.testing.assert_array_equal(found, generate(small_bundle, TEXTS[0]))


def encode_alone(bundle: Path) -> np.ndarray:
    baked = load_baked_prompts(Bundle.open(bundle))
    assert baked is not None
    return baked.read(TEXTS[0])["prompt_embeds"]


def test_a_baked_text_is_taken_from_there_and_others_from_the_text_encoder(
    bundle_path: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bake(own_bundle, {"prompt_embeds": encode(own_bundle) + 1})
    load, loaded = Components.load, []

    def watch(self: Components, name: str, *arguments: Any) -> Any:
        loaded.append(name)
        return load(self, name, *arguments)

    monkeypatch.setattr(Components, "load", watch)
    assert (generate(own_bundle, TEXTS[0]) != generate(bundle_path, TEXTS[0])).any()
    loaded.clear()
    generate(own_bundle, TEXTS[0])
    assert "text_encoder" not in loaded
    other = {"negative_prompt": "red"}
    expected = generate(bundle_path, "a square", **other)
    np.testing.assert_array_equal(generate(own_bundle, "a square", **other), expected)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"format": "mutoscope-prompts-2"}, "is of the format 'mutoscope-prompts-2'; this"),
        ({}, {}, "is of the format None; this mutoscope reads 'mutoscope-prompts-1': pip install"),
        ({}, {"texts": "["}, "does not list its texts, each once"),
        ({}, {"texts": "{}"}, "does not list its texts, each once"),
        ({}, {"texts": "[]"}, "does not list its texts, each once"),
        ({}, {"texts": '["a", 1, "b"]'}, "does not list its texts, each once"),
        ({}, {"texts": '["a", "b", "a"]'}, "does not list its texts, each once"),
        ({}, {"texts": "[" * 100_000}, "does not list its texts, each once"),
        (
            {"prompt_embeds": np.zeros((2, 8, FEATURES), np.float32)},
            {"texts": TEXTS_JSON},
            r"'prompt_embeds' is float32\[2, 8, 6\]; it must have a row for each of 3 texts",
        ),
        (
            {"prompt_embeds": np.zeros(3, np.float32)},
            {"texts": TEXTS_JSON},
            r"'prompt_embeds' is float32\[3\]; it must have a row",
        ),
        (
            {"other": np.zeros((3, 8, FEATURES), np.float32)},
            {"texts": TEXTS_JSON},
            r"has none for prompt_embeds; this bundle's denoiser takes \[sequence, 6\]",
        ),
        (
            {"prompt_embeds": np.zeros((3, 8, 5), np.float32)},
            {"texts": TEXTS_JSON},
            r"has rows of \[8, 5\] for prompt_embeds; this bundle's denoiser takes \[sequence, 6\]",
        ),
        (
            {"prompt_embeds": np.zeros((3, FEATURES), np.float32)},
            {"texts": TEXTS_JSON},
            r"has rows of \[6\] for prompt_embeds",
        ),
    ],
)
def test_a_damaged_file_is_one_line(
    own_bundle: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str], message: str
) -> None:
    known = {"format": FORMAT_NAME} if "texts" in metadata else {}
    bake(own_bundle, tensors or None, {**known, **metadata})
    with pytest.raises(BundleError, match=message) as caught:
        generate(own_bundle, TEXTS[0])
    assert str(caught.value).startswith(PROMPTS_PATH)
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_after_the_export_is_found(small_bundle: Path) -> None:
    path = small_bundle / PROMPTS_PATH
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="safetensors does not match its sha256"):
        generate(small_bundle, TEXTS[0])


def test_a_file_that_the_manifest_does_not_list_is_refused(small_bundle: Path) -> None:
    path = small_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][PROMPTS_PATH]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"names prompts/prompts.safetensors but does not list"):
        Bundle.open(small_bundle)


def test_a_text_encoder_may_not_make_more_than_is_baked(own_bundle: Path) -> None:
    bake(own_bundle)
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    outputs = manifest["components"]["text_encoder"]["outputs"]
    outputs["pooled_prompt_embeds"] = {"dtype": "float32", "shape": ["batch", FEATURES]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no pooled_prompt_embeds, which a text encoder of"):
        generate(own_bundle, TEXTS[0])


def test_inspect_says_how_many_are_baked(
    baked_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["inspect", str(baked_bundle)]) == 0
    assert "up to 8 tokens, with those the tokenizer adds; 3 baked\n" in capsys.readouterr().out
    drop_text_encoder(baked_bundle)
    assert main.run(["inspect", str(baked_bundle)]) == 0
    assert "prompt         one of 3 baked, without a text encoder\n" in capsys.readouterr().out


def test_verify_reads_all_baked_prompts_and_generates_with_one(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["verify", str(small_bundle)]) == 0
    assert "3 prompts" in capsys.readouterr().err
    broken = encode_all(small_bundle)
    broken[2, 0, 0] = np.nan
    bake(small_bundle, {"prompt_embeds": broken})
    assert main.run(["verify", str(small_bundle)]) == 1
    assert "has a damaged tensor 'prompt_embeds'" in "".join(capsys.readouterr())


def encode_all(bundle: Path) -> np.ndarray:
    baked = load_baked_prompts(Bundle.open(bundle))
    assert baked is not None
    return np.concatenate([baked.read(text)["prompt_embeds"] for text in baked.texts])


def test_an_engine_is_built_for_the_length_of_baked_prompts(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    ranges = make_shape_ranges(bundle, "unet", parse_clip_range(bundle, "fixed"))
    assert ranges["encoder_hidden_states"].maximum == (1, MAX_LENGTH, FEATURES)


def test_a_prompt_is_read_without_the_rest_of_the_file(small_bundle: Path) -> None:
    baked = load_baked_prompts(Bundle.open(small_bundle))
    assert baked is not None
    # A byte of another row.
    path = small_bundle / PROMPTS_PATH
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    assert baked.read(TEXTS[0])["prompt_embeds"].shape == (1, MAX_LENGTH, FEATURES)
    with pytest.raises(BundleError, match="damaged tensor"):
        baked.read(TEXTS[2])
