import dataclasses
import json
from pathlib import Path

import pytest

from mutoscope.engines.errors import EngineError
from mutoscope.engines.tensorrt_build import ShapeRange
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.decoding import RUN_BYTES
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.shape_ranges import (
    ClipRange,
    ClipSize,
    make_shape_ranges,
    parse_clip_range,
    takes,
)
from tests.runtime.hand_made_bundle import CHANNELS, FEATURES, MAX_LENGTH, write_manifest

USUAL = ClipSize(48, 32, 6)


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


@pytest.mark.parametrize(
    ("text", "minimum", "maximum"),
    [
        ("fixed", USUAL, USUAL),
        # A half and one and a half of it, in steps of 16.
        ("sizes", ClipSize(16, 16, 6), ClipSize(64, 48, 6)),
        ("any", ClipSize(16, 16, 1), ClipSize(96, 64, 6)),
        ("48X32x6", USUAL, USUAL),
        ("16x16x1, 48x32x6, 256x256x32", ClipSize(16, 16, 1), ClipSize(256, 256, 32)),
    ],
)
def test_a_text_is_a_range_of_clips(
    bundle: Bundle, text: str, minimum: ClipSize, maximum: ClipSize
) -> None:
    assert parse_clip_range(bundle, text) == ClipRange(minimum, USUAL, maximum)


def test_the_greatest_size_is_one_that_the_bundle_allows(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    manifest["limits"]["width"]["maximum"] = 48
    write_manifest(own_bundle, manifest)
    clips = parse_clip_range(Bundle.open(own_bundle), "any")
    assert clips.maximum == ClipSize(48, 64, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", r"shapes is 'all'; it must be fixed, sizes, any, or .*: use fixed or 48x32x6"),
        ("48x32", "it must be fixed"),
        ("48x32x6,48x32x6", "it must be fixed"),
        ("48x33x6", "height is 33; .* use 32 or 48"),
        ("64x32x6,48x32x6,80x32x6", "whose width does not rise"),
        ("48x32x6,48x32x6,48x32x33", "num_frames is 33"),
    ],
)
def test_a_text_that_is_no_range_is_refused(bundle: Bundle, text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_clip_range(bundle, text)


def test_the_ranges_of_inputs_follow_from_the_clips(bundle: Bundle) -> None:
    clips = parse_clip_range(bundle, "16x16x1,48x32x6,64x48x8", 2)
    tokens, scalar = (2, MAX_LENGTH, FEATURES), ()
    assert make_shape_ranges(bundle, "unet", clips) == {
        "sample": ShapeRange(
            (2, CHANNELS, 1, 2, 2), (2, CHANNELS, 6, 4, 6), (2, CHANNELS, 8, 6, 8)
        ),
        "timestep": ShapeRange(scalar, scalar, scalar),
        "encoder_hidden_states": ShapeRange(tokens, tokens, tokens),
    }
    # Only the denoiser runs two at once.
    assert make_shape_ranges(bundle, "text_encoder", clips)["input_ids"].maximum == (1, MAX_LENGTH)


def test_a_decoder_takes_as_many_frames_as_one_run_decodes(own_bundle: Path) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    # Four of the six frames of the usual size fit into a run, and two are left for the last one.
    manifest["components"]["vae_decoder"]["decoder"]["bytes_per_pixel"] = RUN_BYTES / (4 * 32 * 48)
    write_manifest(own_bundle, manifest)
    bundle = Bundle.open(own_bundle)

    def find_frames(text: str) -> tuple[int, int, int]:
        latents = make_shape_ranges(bundle, "vae_decoder", parse_clip_range(bundle, text))[
            "latents"
        ]
        return latents.minimum[2], latents.optimum[2], latents.maximum[2]

    assert find_frames("fixed") == (2, 4, 4)
    # With other sizes it may be any number that is left.
    assert find_frames("48x32x6,48x32x6,96x64x6") == (1, 4, 4)
    # More of the small frames fit into a run, of a clip that is none of the three.
    assert find_frames("16x16x1,48x32x6,48x32x9") == (1, 4, 9)


def test_an_axis_of_another_name_is_refused(bundle: Bundle) -> None:
    unet = bundle.manifest.components["unet"]
    sample = dataclasses.replace(unet.inputs["sample"], shape=("batch", 4, "F", 2, 2))
    unet.inputs["sample"] = sample
    with pytest.raises(EngineError, match=r"unet has an input sample with an axis 'F'"):
        make_shape_ranges(bundle, "unet", parse_clip_range(bundle, "fixed"))


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 2), True), ((3, 2), True), ((4, 2), False), ((1, 3), False)]
)
def test_shapes_are_within_ranges_or_not(shape: tuple[int, int], expected: bool) -> None:
    assert takes({"x": ShapeRange((1, 2), (2, 2), (3, 2))}, {"x": shape}) is expected


@pytest.mark.parametrize(
    ("clips", "text"),
    [
        (ClipRange(USUAL, USUAL, USUAL), "48x32x6"),
        (
            ClipRange(ClipSize(16, 16, 1), USUAL, ClipSize(64, 48, 8)),
            "16x16x1 to 64x48x8, best at 48x32x6",
        ),
    ],
)
def test_ranges_are_said_in_words(clips: ClipRange, text: str) -> None:
    assert str(clips) == text
