import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from mutoscope.engines.options import EngineOptions
from mutoscope.export import export_checkpoint
from mutoscope.export.prompt_baking import write_baked_prompts
from mutoscope.export.verification import compare_with_checkpoint
from mutoscope.runtime.baked_prompts import PROMPTS_PATH
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.bundle_writer import save_manifest
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.verification import verify_bundle
from tests.conftest import CommandResult, MakeOnce, RunCommand, run_in_process
from tests.export.traced_graphs import traces_from

PROMPTS = ("a red circle", "a blue square moves left")
OPTIONS: dict[str, Any] = {
    "seed": 1,
    "num_inference_steps": 2,
    "num_frames": 2,
    "height": 32,
    "width": 32,
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n" + "\n".join((*PROMPTS, "", PROMPTS[0])) + "\n")
    return path


@pytest.fixture(scope="session")
def small_bundle(tiny_checkpoint: Path, tiny_bundle: Path, make_once: MakeOnce) -> Path:
    """A bundle of `tiny_checkpoint` without a text encoder, made by the command.

    Its components were traced for `tiny_bundle`.
    """

    def fill(folder: Path) -> Path:
        path = folder / "prompts.txt"
        path.write_text("\n".join(PROMPTS))
        arguments: list[str | Path] = [
            "--bake-prompts",
            path,
            "--drop-text-encoder",
            "--num-inference-steps=2",
        ]
        with traces_from(tiny_bundle, Bundle.open(tiny_bundle).manifest.components):
            done = run_in_process("export", tiny_checkpoint, *arguments, "-o", folder / "small")
        assert done.exit_code == 0, done.stderr
        assert "prompts" in done.stderr
        return folder / "small"

    return make_once("bundle-small", fill)


def bake(bundle: Path, *, drop_text_encoder: bool) -> None:
    """Bake the prompts into a bundle that is there."""
    manifest = Bundle.open(bundle).manifest
    save_manifest(
        write_baked_prompts(manifest, bundle, PROMPTS, drop_text_encoder=drop_text_encoder), bundle
    )


def generate(bundle: Path, prompt: str, **options: Any) -> np.ndarray:
    with VideoPipeline.open(bundle) as pipeline:
        return pipeline.generate(prompt, **OPTIONS, **options).frames


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_bundle_without_its_text_encoder_makes_the_same_frames(
    small_bundle: Path, tiny_bundle: Path, prompt: str
) -> None:
    np.testing.assert_array_equal(generate(small_bundle, prompt), generate(tiny_bundle, prompt))


def test_a_bundle_without_its_text_encoder_has_nothing_of_it(small_bundle: Path) -> None:
    assert not (small_bundle / "text_encoder").exists()
    assert not (small_bundle / "tokenizer").exists()
    manifest = Bundle.open(small_bundle).manifest
    assert "text_encoder" not in manifest.components
    assert manifest.tokenizers == {}
    found = {p.relative_to(small_bundle).as_posix() for p in small_bundle.rglob("*")}
    assert set(manifest.files) == {n for n in found if (small_bundle / n).is_file()} - {
        "manifest.json"
    }


def test_a_bundle_without_its_text_encoder_is_verified_with_and_without_its_checkpoint(
    small_bundle: Path, tiny_checkpoint: Path
) -> None:
    results = list(verify_bundle(Bundle.open(small_bundle), EngineOptions(num_threads=1)))
    assert [result.problem for result in results if not result.ok] == []
    assert "text_encoder" not in compare_with_checkpoint(small_bundle, tiny_checkpoint)


def test_the_file_is_what_the_documentation_says(small_bundle: Path, tiny_bundle: Path) -> None:
    with safe_open(small_bundle / PROMPTS_PATH, "numpy") as file:
        metadata, names = file.metadata(), list(file.keys())
        embeds = file.get_tensor("prompt_embeds")
    assert metadata["format"] == "mutoscope-prompts-1"
    assert json.loads(metadata["texts"]) == [*PROMPTS, ""]
    outputs = Bundle.open(tiny_bundle).manifest.components["text_encoder"].outputs
    assert names == list(outputs)
    assert embeds.dtype == np.float32
    assert embeds.shape == (3, *outputs["prompt_embeds"].shape[1:])


def test_both_embeddings_of_sdxl_are_baked(sdxl_bundle: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(sdxl_bundle, small)
    bake(small, drop_text_encoder=True)
    assert not (small / "tokenizer_2").exists()
    with safe_open(small / PROMPTS_PATH, "numpy") as file:
        assert sorted(file.keys()) == ["pooled_prompt_embeds", "prompt_embeds"]
    for prompt in PROMPTS:
        np.testing.assert_array_equal(generate(small, prompt), generate(sdxl_bundle, prompt))
    # Without a negative prompt the outputs of the text encoder are zeros here; this one is baked.
    found = generate(small, PROMPTS[0], negative_prompt="")
    np.testing.assert_array_equal(found, generate(sdxl_bundle, PROMPTS[0], negative_prompt=""))


def test_a_bundle_of_images_and_prompts_bakes_its_prompts(
    i2vgen_bundle: Path, tmp_path: Path
) -> None:
    small, image = tmp_path / "small", np.full((32, 32, 3), 90, np.uint8)
    shutil.copytree(i2vgen_bundle, small)
    bake(small, drop_text_encoder=True)
    assert "image_encoder" in Bundle.open(small).manifest.components
    options = OPTIONS | {"image": image, "num_inference_steps": 1}
    clips = []
    for bundle in (small, i2vgen_bundle):
        with VideoPipeline.open(bundle) as pipeline:
            clips.append(pipeline.generate(PROMPTS[0], **options).frames)
    np.testing.assert_array_equal(clips[0], clips[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"prompts.txt has no prompts: write one on each line"),
        (b"\n  \n# a\n", r"prompts.txt has no prompts"),
        (b"a\n\xff\n", r"prompts.txt: line 2 is not UTF-8"),
        (b"a\tb", r"prompts.txt: line 1 has the control character U\+0009"),
        (b"a\n\n" + b"word " * 100, r"prompts.txt: line 3 has \d+ tokens .*shorten it"),
    ],
)
def test_bad_files_of_prompts_are_one_line(
    tiny_checkpoint: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ParameterError, match=message) as caught:
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", bake_prompts=path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts.txt"]


def test_a_file_that_is_not_there_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no.txt does not exist: give a text file of prompts"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", bake_prompts=tmp_path / "no.txt")


def test_a_model_without_prompts_bakes_none(
    svd_checkpoint: Path, tmp_path: Path, prompts: Path
) -> None:
    with pytest.raises(ParameterError, match="this model makes videos of an image alone: leave it"):
        export_checkpoint(svd_checkpoint, tmp_path / "bundle", bake_prompts=prompts)


def test_the_text_encoder_stays_where_nothing_is_baked(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="would take no prompt: use --bake-prompts FILE"):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", drop_text_encoder=True)


def test_prompts_are_not_baked_into_a_bundle_that_float16_is_added_to(
    run_command: RunCommand, tiny_checkpoint: Path, tiny_bundle: Path, prompts: Path
) -> None:
    done: CommandResult = run_command(
        "export", tiny_checkpoint, "-o", tiny_bundle, "--add", "--dtype=float16", "--bake-prompts",
        prompts,
    )  # fmt: skip
    assert done.exit_code == 2
    assert "leave out --bake-prompts" in done.stderr
