"""Each bad input of the Python runtime gives the same exception and message in C."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.errors import (
    EngineError,
    ExecutionProviderError,
    MutoscopeError,
    ParameterError,
)
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import write_manifest
from tests.runtime.native.native_bundles import (
    EMBEDDING,
    SPARED_BYTES,
    make_image,
    read_manifest,
)
from tests.runtime.native.same_errors import catch, check_same

MIB = 2**20
NAN, INFINITY = float("nan"), float("inf")
EMBEDS = EMBEDDING[[620, 621]][None]
LATENTS = np.zeros((1, 4, 6, 4, 6), dtype=np.float32)
LONG_PROMPT = "a red circle and a blue star and a green square and a red triangle and a circle"


# ---- arguments of a generation


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": LONG_PROMPT},
        {"prompt": "a\n" * 5000},
        {"prompt": "🟠 é  " * 9 + "red circle"},
        {"negative_prompt": LONG_PROMPT},
        {"negative_prompt": "a", "guidance_scale": 1.0},
        {"height": 40},
        {"height": 8},
        {"width": 4000},
        {"width": -16},
        {"context_length": 7},
        {"context_length": 33, "num_frames": 40},
        {"context_length": -1},
        {"context_length": "all"},
        {"context_stride": 7},
        {"context_stride": -2},
        {"context_stride": 2.0},
        {"context_length": 4, "context_stride": 5},
        {"num_frames": -1},
        {"num_inference_steps": 60},
        {"num_inference_steps": 6},
        {"num_inference_steps": -3},
        {"scheduler": "unipc"},
        {"scheduler": ""},
        {"scheduler": "DDIM Parallel"},
        {"scheduler": "a'b"},
        {"scheduler": "naïve\n"},
        {"guidance_scale": 0.5},
        {"guidance_scale": -1e30},
        {"guidance_scale": NAN},
        {"guidance_scale": INFINITY},
        {"min_guidance_scale": 0.25},
        {"min_guidance_scale": NAN},
        {"min_guidance_scale": -INFINITY},
        {"frame_rate": -1.0},
        {"frame_rate": 1000.5},
        {"frame_rate": NAN},
        {"frame_rate": INFINITY},
        {"seed": -1},
        {"seed": 2**64},
        {"guidance_passes": "together"},
        {"num_frames": "4"},
        {"num_frames": 1.5},
        {"height": True},
        {"width": [48]},
        {"num_inference_steps": 4.0},
        {"seed": "a"},
        {"seed": 1.0},
        {"guidance_scale": "x"},
        {"min_guidance_scale": [2]},
        {"frame_rate": "fast"},
        {"conditions": {"strength": "much"}},
        {"conditions": {"strength": 11.0}},
        {"conditions": {"strength": NAN}},
        {"conditions": {"strength": -INFINITY}},
        {"conditions": {"weakness": 1.0}},
        {"image": make_image()},
        {"prompt": None},
        {"prompt": None, "prompt_embeds": EMBEDS[0]},
        {"prompt": None, "prompt_embeds": EMBEDS[..., :3]},
        {"prompt": None, "prompt_embeds": EMBEDS * np.float32(NAN)},
        {"prompt": None, "prompt_embeds": EMBEDS.astype(np.int64)},
        {"latents": LATENTS[0]},
        {"latents": LATENTS[:, :3]},
        {"latents": LATENTS[:, :, :0]},
        {"latents": LATENTS.astype(np.int64)},
        {"latents": np.repeat(LATENTS, 2, axis=0)},
        {"latents": LATENTS + np.float32(INFINITY)},
        {"latents": LATENTS, "height": 64},
        {"latents": LATENTS, "num_frames": 5},
        {"latents": LATENTS[:, :, :, :3]},
    ],
    ids=lambda values: ", ".join(f"{name} {str(value)[:20]}" for name, value in values.items()),
)
def test_a_wrong_argument_is_refused_as_in_python(
    native: NativePipeline, python: VideoPipeline, values: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"prompt": "a red circle", **values}
    check_same(
        lambda: native.generate(**arguments), lambda: python.generate(**arguments), ParameterError
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_embeds": EMBEDS}, "prompt and prompt_inputs are both given: leave one out"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS},
            "negative_prompt and negative_prompt_inputs are both given: leave one out",
        ),
        (
            {"prompt": None, "prompt_embeds": {"pooled_prompt_embeds": EMBEDS}},
            "prompt_embeds has pooled_prompt_embeds; .* takes prompt_embeds: give all of them",
        ),
    ],
)
def test_arrays_in_place_of_a_prompt_have_the_name_that_c_has_for_them(
    native: NativePipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        native.generate(**{"prompt": "a", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0, which is the bundle's default in C: leave it out"),
        ({"guidance_scale": 0.0}, "guidance_scale is 0, which is the bundle's default in C"),
        ({"num_frames": 2**31}, "num_frames is 2147483648; it must be at most 2147483647"),
        ({"prompt": "a\0b"}, "prompt has a zero character, where C ends a text: leave it out"),
        ({"latents": [1, 2]}, "latents is a list; it must be a numpy array"),
        ({"latents": LATENTS.astype(float)}, r"latents is float64\[1, 4, 6, 4, 6\]; it must be"),
        ({"latents": LATENTS.astype(">f4")}, r"latents is >f4\[1, 4, 6, 4, 6\]; it must be one"),
        ({"guidance_scale": 10**400}, r"guidance_scale is 10+; it must be a number"),
        ({"prompt": 3}, "prompt is a int; it must be a string"),
    ],
)
def test_what_has_no_form_in_c_is_refused_by_the_binding(
    native: NativePipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        native.generate(**{"prompt": "a", **values})


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_text_that_is_not_utf8_is_refused(native: NativePipeline, name: str) -> None:
    values: dict[str, Any] = {"prompt": "a", name: "a \ud800 b"}
    with pytest.raises(ParameterError, match=rf"^{name} is not valid UTF-8"):
        native.generate(**values)


@pytest.mark.parametrize(
    "text", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88"]
)
def test_tokenize_refuses_text_that_is_not_utf8(native: NativePipeline, text: bytes) -> None:
    with pytest.raises(ParameterError, match="is not valid UTF-8"):
        native.tokenize(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_ids": np.zeros((1, 17), np.int64)}, "17"),
        ({"prompt_ids": np.zeros((2, 4), np.int64)}, r"int64\[2, 4\]"),
        ({"prompt_ids": np.zeros((1, 0), np.int64)}, r"int64\[1, 0\]"),
        ({"prompt_ids": np.zeros((1, 4), np.float32)}, r"float32\[1, 4\]"),
        ({"prompt_ids": np.array([[620, -1]])}, r"prompt_inputs\['input_ids'\] has the id -1"),
        ({"prompt_ids": {"input_ids_2": np.zeros((1, 4), np.int64)}}, "input_ids_2"),
        ({"prompt": "a", "prompt_ids": np.zeros((1, 4), np.int64)}, "prompt"),
        ({"prompt_ids": np.zeros((1, 4), np.int64), "prompt_embeds": EMBEDS}, "prompt"),
    ],
)
def test_wrong_token_ids_are_refused(
    native: NativePipeline, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        native.generate(**values)


@pytest.mark.parametrize("token", [622, 2**40])
def test_a_token_id_that_the_encoder_does_not_know_is_an_error(
    native: NativePipeline, token: int
) -> None:
    ids = np.array([[620, token, 621]])
    with pytest.raises(EngineError, match=r"text_encoder/model.onnx failed"):
        native.generate(prompt_ids=ids, guidance_scale=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image": make_image(), "prompt": "a"},
        {"image": make_image(), "prompt_embeds": EMBEDS},
        {"image": make_image(), "negative_prompt": "a"},
        {"image": make_image()[..., :2].copy()},
        {"image": make_image()[:0]},
        {"image": make_image().astype(np.float32)},
    ],
    ids=["no-image", "text", "embeds", "negative", "two-channels", "empty", "float"],
)
def test_a_wrong_argument_of_a_bundle_of_images_is_refused_as_in_python(
    library: Library, image_bundle: Path, values: dict[str, Any]
) -> None:
    with (
        NativePipeline.open(image_bundle, library=library) as native,
        VideoPipeline.open(image_bundle) as python,
    ):
        check_same(
            lambda: native.generate(**values),
            lambda: python.generate(**values),
            ParameterError,
            # Python takes a path as well.
            same_way_out="image" in values,
        )
        assert str(catch(lambda: native.resolve(**values))) == str(
            catch(lambda: native.generate(**values))
        )


def test_a_bundle_without_guidance_refuses_it_as_in_python(
    library: Library, own_bundle: Path
) -> None:
    write_manifest(own_bundle, read_manifest(own_bundle) | {"guidance": False})
    with (
        NativePipeline.open(own_bundle, library=library) as native,
        VideoPipeline.open(own_bundle) as python,
    ):
        for values in (
            {"guidance_scale": 2.0},
            {"min_guidance_scale": 2.0},
            {"negative_prompt": "b"},
        ):
            check_same(
                lambda values=values: native.generate("a", **values),
                lambda values=values: python.generate("a", **values),
                ParameterError,
            )
        assert native.info()["guidance"] == 0
        assert native.resolve("a")["uses_guidance"] == 0


def test_a_memory_limit_that_is_too_low_is_refused_as_in_python(
    library: Library, text_bundle: Path
) -> None:
    with (
        NativePipeline.open(text_bundle, library=library, memory_limit_bytes=MIB) as native,
        VideoPipeline.open(text_bundle, memory_limit_bytes=MIB) as python,
    ):
        found = catch(lambda: native.generate("a"))
        expected = catch(lambda: python.generate("a"))
    assert type(found) is type(expected) is ParameterError
    spared = SPARED_BYTES // MIB
    (least,) = set(re.findall(r"(\d+) ?MiB", str(expected))) - {"1"}
    assert str(found) == str(expected).replace(least, str(int(least) - spared))


def test_a_memory_limit_without_a_decoder_record_is_refused_as_in_python(
    library: Library, own_bundle: Path
) -> None:
    manifest = read_manifest(own_bundle)
    del manifest["components"]["vae_decoder"]["decoder"]
    write_manifest(own_bundle, manifest)
    with (
        NativePipeline.open(own_bundle, library=library, memory_limit_bytes=MIB) as native,
        VideoPipeline.open(own_bundle, memory_limit_bytes=MIB) as python,
    ):
        check_same(lambda: native.generate("a"), lambda: python.generate("a"), ParameterError)


# ---- opening


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"variant": "int8"}, ParameterError),
        ({"num_threads": 0}, EngineError),
        ({"num_threads": -1}, EngineError),
        ({"memory": "little"}, EngineError),
    ],
)
def test_open_refuses_an_option_as_python_does(
    library: Library, text_bundle: Path, options: dict[str, Any], error: type[MutoscopeError]
) -> None:
    check_same(
        lambda: NativePipeline.open(text_bundle, library=library, **options),
        lambda: VideoPipeline.open(text_bundle, **options),
        error,
    )


def test_open_refuses_a_variant_without_a_name(library: Library, text_bundle: Path) -> None:
    with pytest.raises(ParameterError, match="variant is '', a name of none: use NULL"):
        NativePipeline.open(text_bundle, library=library, variant="")


@pytest.mark.parametrize("num_threads", [2**31, 2**32, 2**32 + 1, 100_000, 1.5, "2"])
def test_open_refuses_threads_that_no_machine_has(
    library: Library, text_bundle: Path, num_threads: Any
) -> None:
    with pytest.raises(ParameterError, match=f"^num_threads is {num_threads!r}; it must be "):
        NativePipeline.open(text_bundle, library=library, num_threads=num_threads)


@pytest.mark.parametrize("name", ["cuda", "gpu", "", "no such 'thing'"])
def test_open_refuses_an_execution_provider_as_python_does(
    library: Library, text_bundle: Path, name: str
) -> None:
    found = catch(
        lambda: NativePipeline.open(text_bundle, library=library, execution_provider=name)
    )
    expected = catch(lambda: VideoPipeline.open(text_bundle, execution_provider=name))
    assert type(found) is type(expected) is ExecutionProviderError
    # What there is may differ, and with it what Python says of a name that it does not know.
    start = f"execution provider {name!r} is not in this onnxruntime build (available: "
    assert str(found).startswith(start)
    assert "\n" not in str(found)


# ---- questions


def test_a_question_about_what_there_is_not_is_refused(
    native: NativePipeline, python: VideoPipeline
) -> None:
    check_same(lambda: native.find_variant("motor"), lambda: python.unload("motor"), ParameterError)
    check_same(
        lambda: native.list_steps("unipc"),
        lambda: python.bundle.find_scheduler("unipc"),
        ParameterError,
    )
    check_same(
        lambda: native.condition("weakness"),
        lambda: python.generate("a", conditions={"weakness": 1}),
        ParameterError,
    )
    for name in ("input_ids_2", ""):
        with pytest.raises(ParameterError, match=f"'{name}'"):
            native.tokenize("a", tokenizer=name)
