import dataclasses
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import (
    BUILT_IN_PROMPTS,
    PROMPTS_PATH,
    SamplingOptions,
    load_default_prompts,
    load_tokenizers,
    make_samples,
    open_float_pipeline,
    read_prompts,
)
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.image_records import ImageRecord
from tests.runtime.hand_made_bundle import make_bundle, write_manifest
from training.clips import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    PILLAR_MOTIONS,
    SHAPES,
    ClipAttributes,
    list_held_out_attributes,
    list_training_attributes,
)

ROOT = Path(__file__).parents[2]
CHECKPOINT_PROMPTS = ROOT / "checkpoints" / "moving-shapes" / "mutoscope_prompts.txt"
PROMPTS = ["a red circle", "a blue square", "a circle moves left", "a square moves right", "a"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("samples") / "bundle"))


def change_manifest(bundle, **changes):
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))


@pytest.fixture
def image_bundle(bundle):
    """A bundle of an image alone."""
    records = {"image": ImageRecord(operations=())}
    return change_manifest(bundle, tokenizers={}, images=records)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "text", ["a red circle\n\n# a note\n  a square  \n", "a red circle\r\na square"]
)
def test_prompts_are_the_lines_that_are_neither_empty_nor_comments(tmp_path, text):
    assert read_prompts(write(tmp_path / "p.txt", text), []) == ["a red circle", "a square"]


def test_the_mark_that_some_editors_write_is_no_part_of_the_first_prompt(tmp_path):
    path = write(tmp_path / "p.txt", b"\xef\xbb\xbfa caf\xc3\xa9")
    assert read_prompts(path, []) == ["a café"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "p.txt has no prompts: write one on each line"),
        ("# only this\n\n", "p.txt has no prompts"),
        (b"a\nb\nc\xff\n", "p.txt: line 3 is not UTF-8"),
        ("a\n\nred\tcircle", r"p.txt: line 3 has the control character U\+0009"),
        ("a\rb", r"line 1 has the control character U\+000D"),
        ("a\n#\na a a a a a a", "p.txt: line 3 has 9 tokens .* takes at most 8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path, bundle, data, message):
    path = write(tmp_path / "p.txt", data)
    with pytest.raises(CalibrationError, match=message):
        read_prompts(path, load_tokenizers(bundle))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"absent.txt does not exist"):
        read_prompts(tmp_path / "absent.txt", [])
    with pytest.raises(CalibrationError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path, [])


def test_samples_are_the_same_for_the_same_seed_and_others_for_another(bundle):
    samples = make_samples(bundle, PROMPTS, [], 12, 7)
    assert make_samples(bundle, PROMPTS, [], 12, 7) == samples
    other = make_samples(bundle, PROMPTS, [], 12, 8)
    assert not {sample.seed for sample in other} & {sample.seed for sample in samples}
    assert [s.prompt for s in other] != [s.prompt for s in samples]


def test_the_first_samples_of_more_are_those_of_fewer(bundle):
    assert make_samples(bundle, PROMPTS, [], 12, 7)[:5] == make_samples(bundle, PROMPTS, [], 5, 7)


def test_prompts_come_again_with_other_noise_once_all_were_used(bundle):
    samples = make_samples(bundle, PROMPTS, [], 10, 0)
    assert sorted(sample.prompt for sample in samples[:5]) == sorted(PROMPTS)
    assert [s.prompt for s in samples[:5]] == [s.prompt for s in samples[5:]]
    assert len({sample.seed for sample in samples}) == len(samples)


def test_one_sample_in_four_has_guidance_off(bundle):
    scales = [sample.guidance_scale for sample in make_samples(bundle, PROMPTS, [], 8, 0)]
    assert scales == [3.0, 3.0, 3.0, 1.0] * 2


def test_no_sample_has_guidance_where_the_denoiser_does_not_follow_it(bundle):
    samples = make_samples(change_manifest(bundle, guidance=False), PROMPTS, [], 5, 0)
    assert {sample.guidance_scale for sample in samples} == {1.0}


def test_images_are_taken_in_turn_by_a_bundle_that_takes_them(image_bundle, image):
    samples = make_samples(image_bundle, [], [image, image], 3, 0)
    assert [(sample.prompt, sample.image) for sample in samples] == [(None, image)] * 3


def test_an_image_that_is_none_is_refused_before_any_sampling(image_bundle, image):
    image.write_text("no image")
    with pytest.raises(CalibrationError, match="which is not an image"):
        make_samples(image_bundle, [], [image], 1, 0)


def test_samples_need_what_the_bundle_takes_and_nothing_else(bundle, image_bundle, image):
    with pytest.raises(CalibrationError, match="give some with --image FILE"):
        make_samples(image_bundle, [], [], 1, 0)
    with pytest.raises(CalibrationError, match="leave --image out"):
        make_samples(bundle, PROMPTS, [image], 1, 0)
    with pytest.raises(CalibrationError, match="leave --prompts out"):
        make_samples(image_bundle, PROMPTS, [image], 1, 0)
    with pytest.raises(CalibrationError, match="there are no prompts"):
        make_samples(bundle, [], [], 1, 0)
    with pytest.raises(CalibrationError, match=re.escape("prompts[1] has 9 tokens")):
        make_samples(bundle, ["a", "a a a a a a a"], [], 1, 0)


def test_numbers_of_samples_and_seeds_out_of_range_are_refused(bundle):
    with pytest.raises(CalibrationError, match="num_samples is 0; it must be at least 1"):
        make_samples(bundle, PROMPTS, [], 0, 0)
    with pytest.raises(CalibrationError, match="seed is -1; it must be from 0"):
        make_samples(bundle, PROMPTS, [], 1, -1)


def test_a_bundle_with_prompts_of_its_own_is_sampled_with_them(tmp_path):
    path = make_bundle(tmp_path / "bundle")
    (path / PROMPTS_PATH).parent.mkdir()
    (path / PROMPTS_PATH).write_text("a red square\n")
    manifest = dict(Bundle.open(path).manifest.to_json())
    write_manifest(path, manifest)
    assert load_default_prompts(Bundle.open(path)) == ["a red square"]


def test_a_bundle_without_prompts_of_its_own_is_sampled_with_the_built_in_ones(bundle):
    records = bundle.manifest.tokenizers
    longer = {name: dataclasses.replace(records[name], max_length=77) for name in records}
    prompts = load_default_prompts(change_manifest(bundle, tokenizers=longer))
    assert prompts == read_prompts(BUILT_IN_PROMPTS, [])
    assert len(set(prompts)) == 32


def test_built_in_prompts_that_do_not_fit_are_refused_with_a_way_out(bundle):
    with pytest.raises(CalibrationError, match=r"give some with --prompts FILE \(.*at most 8"):
        load_default_prompts(bundle)


def test_a_bundle_that_takes_no_prompt_has_no_default_ones(image_bundle):
    assert load_default_prompts(image_bundle) == []


def test_a_bundle_without_float32_graphs_is_refused(bundle):
    components = {
        name: dataclasses.replace(record, variants={"float16": "x"}, default_variant="float16")
        for name, record in bundle.manifest.components.items()
    }
    with pytest.raises(CalibrationError, match=r"has no float32 graph \(it has float16\)"):
        open_float_pipeline(change_manifest(bundle, components=components))


def test_options_that_the_bundle_does_not_allow_are_refused(bundle):
    sample = make_samples(bundle, PROMPTS, [], 1, 0)[0]
    assert SamplingOptions(num_inference_steps=2).resolve(bundle, sample).num_inference_steps == 2
    with pytest.raises(ParameterError, match="height is 99"):
        SamplingOptions(height=99).resolve(bundle, sample)


def list_captions(attributes):
    """All that training may say of these clips, with and without the pillar."""
    captions = set()
    for entry in attributes:
        pillars = (False, True) if entry.motion in PILLAR_MOTIONS else (False,)
        for pillar in pillars:
            clip = dataclasses.replace(entry, pillar=pillar)
            for text in (clip.caption(), clip.still_caption()):
                background = f" on a {clip.background} background"
                captions |= {text, text.removesuffix(background)}
                captions.add(text.replace(f" {clip.colour}", "", 1))
    return captions


def list_full_captions(attributes):
    return {
        dataclasses.replace(entry, pillar=pillar).caption()
        for entry, pillar in product(attributes, (False, True))
    }


def test_no_prompt_of_the_shipped_checkpoint_is_held_out():
    prompts = read_prompts(CHECKPOINT_PROMPTS, [])
    assert len(set(prompts)) == len(prompts) == 64
    assert set(prompts) <= list_captions(list_training_attributes())
    assert not set(prompts) & list_full_captions(list_held_out_attributes())
    # The check above can fail: what it looks for is there in the held-out prompts.
    assert ClipAttributes.caption(list_held_out_attributes()[0]) in list_full_captions(
        list_held_out_attributes()
    )


@pytest.mark.parametrize("words", [tuple(COLOURS), SHAPES, MOTIONS, tuple(BACKGROUNDS)])
def test_the_prompts_of_the_shipped_checkpoint_cover_its_grammar_evenly(words):
    prompts = read_prompts(CHECKPOINT_PROMPTS, [])
    counts = Counter(word for prompt in prompts for word in words if f" {word}" in prompt)
    assert set(counts) == set(words)
    # Captions that leave something out make up for a few between the rarest and the commonest.
    assert max(counts.values()) - min(counts.values()) <= 4
    assert any("behind a pillar" in prompt for prompt in prompts)
