"""Everything that goes with a checkpoint at once, as a person gives it on the command line.

A Stable Diffusion folder, a motion adapter, a LoRA, a preset and a tiny decoder for
previews become a bundle that makes what diffusers makes of the same parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from numpy.typing import NDArray
from safetensors.torch import save_file

from mutoscope.runtime import VideoPipeline, load_latents
from tests.checkpoints import randomise
from tests.conftest import Layouts, run_in_process
from tests.lora_layouts import make_matrices, name_kohya, write_lora

# diffusers turns torch tensors into arrays in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

# Float32 in another order of additions moves a few values across the middle between two levels.
MAX_DIFFERENCE = 2
PROMPT, SEED, SCALE = "a red circle moves left", 3, 0.75
SIZE = {"height": 32, "width": 48, "num_frames": 5}


@dataclass(frozen=True)
class Route:
    """The parts in diffusers, and the bundle that the command made of the same files."""

    diffusers: Any
    bundle: Path
    without_lora: NDArray[np.int64]


@pytest.fixture(scope="module")
def route(other_layouts: Layouts, tmp_path_factory: pytest.TempPathFactory) -> Route:
    from diffusers import AnimateDiffPipeline

    folder = tmp_path_factory.mktemp("route")
    pipeline = AnimateDiffPipeline.from_pretrained(other_layouts.animatediff, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", beta_schedule="linear"
    )
    files = {"adapter": other_layouts.motion_adapter, "lora": folder / "style.safetensors"}
    models = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    # diffusers finds no motion modules under the names that kohya gives them.
    matrices = make_matrices(models, lambda name: "motion_modules" not in name)
    write_lora(files["lora"], name_kohya(matrices))
    tiny = AutoencoderTiny(
        latent_channels=3, encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    randomise(tiny)
    tiny.save_pretrained(folder / "tiny-vae")
    result = run_in_process(
        "export", other_layouts.stable_diffusion, "--motion-adapter", files["adapter"],
        "--lora", f"{files['lora']}:{SCALE}", "--preset", "lightning-2",
        "--preview-vae", folder / "tiny-vae", "-o", folder / "bundle",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    without_lora = run_diffusers(pipeline)
    pipeline.load_lora_weights(files["lora"])
    pipeline.fuse_lora(lora_scale=SCALE)
    return Route(pipeline, folder / "bundle", without_lora)


def run_diffusers(pipeline: Any) -> NDArray[np.int64]:
    generator = torch.Generator("cpu").manual_seed(SEED)
    output = pipeline(
        PROMPT, generator=generator, output_type="np", num_inference_steps=2, guidance_scale=1.0,
        **SIZE,
    )  # fmt: skip
    return np.round(output.frames[0] * 255).astype(np.int64)


def test_frames_are_those_of_diffusers_with_the_same_parts(route: Route) -> None:
    expected = run_diffusers(route.diffusers)
    assert np.abs(expected - route.without_lora).max() > 10 * MAX_DIFFERENCE
    with VideoPipeline.open(route.bundle) as pipeline:
        found = pipeline.generate(PROMPT, seed=SEED, **SIZE)
    assert found.settings is not None
    assert (found.settings.num_inference_steps, found.settings.guidance_scale) == (2, 1.0)
    assert np.abs(found.frames.astype(np.int64) - expected).max() <= MAX_DIFFERENCE


def test_the_manifest_says_what_went_in(route: Route) -> None:
    manifest = json.loads((route.bundle / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert provenance["preset"] == "lightning-2"
    assert provenance["preview_vae"] == "tiny-vae"
    assert provenance["motion_adapter"] == "motion-adapter"
    (lora,) = provenance["loras"]
    assert (lora["file"], lora["scale"]) == ("style.safetensors", SCALE)
    assert set(lora["fused_weights"]) == {"unet", "text_encoder"}
    assert list(manifest["schedules"]) == ["euler"]
    assert sorted(manifest["schedules"]["euler"]) == ["2", "3"]
    assert provenance["scheduler_config"]["timestep_spacing"] == "trailing"


def test_generate_shows_previews_and_keeps_latents(route: Route, tmp_path: Path) -> None:
    output = tmp_path / "clip.npy"
    common = ("--bundle", route.bundle, "--seed", SEED, "--memory", "low")
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    result = run_in_process(
        "generate", PROMPT, *map(str, common), *sizes, "--preview",
        "--save-latents", tmp_path / "clip.npz", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "clip.npy.preview.png").is_file()
    assert load_latents(tmp_path / "clip.npz").info["seed"] == SEED
    decoded = tmp_path / "again.npy"
    again = run_in_process(
        "decode", tmp_path / "clip.npz", "--bundle", route.bundle, "--memory", "low", "-o", decoded
    )
    assert again.exit_code == 0, again.stderr
    np.testing.assert_array_equal(np.load(decoded), np.load(output))


def test_verify_compares_with_all_that_went_in(route: Route, other_layouts: Layouts) -> None:
    folder = route.bundle.parent
    options = (
        "--motion-adapter", other_layouts.motion_adapter, "--preset", "lightning-2",
        "--preview-vae", folder / "tiny-vae",
    )  # fmt: skip
    verify = ("verify", route.bundle, "--checkpoint", other_layouts.stable_diffusion, *options)
    whole = run_in_process(*verify, "--lora", f"{folder / 'style.safetensors'}:{SCALE}")
    assert whole.exit_code == 0, whole.stderr
    without = run_in_process(*verify)
    assert without.exit_code == 1
    assert "does not compute what the checkpoint computes" in without.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "turbo"), "preset 'turbo' is unknown: use one of lightning-1"),
        (("--lora", "absent.safetensors"), "absent.safetensors does not exist"),
        (("--vae", "absent"), "absent does not exist: give the folder of a VAE"),
        (("--single-file",), "is not a file: leave out --single-file"),
    ],
)
def test_what_does_not_fit_is_one_line(
    other_layouts: Layouts, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    output = tmp_path / "bundle"
    result = run_in_process("export", other_layouts.animatediff, *options, "-o", output)
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not output.exists()


def test_a_lora_of_another_model_is_named_before_any_work(
    other_layouts: Layouts, tmp_path: Path
) -> None:
    keys = {"lora_unet_mid_block_nowhere.lora_down.weight": torch.ones(2, 4),
            "lora_unet_mid_block_nowhere.lora_up.weight": torch.ones(4, 2)}  # fmt: skip
    save_file(keys, str(tmp_path / "other.safetensors"))
    result = run_in_process(
        "export", other_layouts.animatediff, "--lora", tmp_path / "other.safetensors",
        "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "lora_unet_mid_block_nowhere" in result.stderr
    assert "[1/" not in result.stderr
