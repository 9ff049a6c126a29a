"""What a checkpoint may look like, and the one line for each way in which it may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from mutoscope.export.checkpoint import find_weights_variant, load_model, open_checkpoint
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families import open_family
from mutoscope.export.families.animatediff import make_unet, make_vae_decoder
from tests.conftest import Layouts

EditCheckpoint = Callable[..., Path]


def open_unet(checkpoint: Path, **options: Any) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(checkpoint, **options)
    open_family(opened)
    return make_unet(opened).module.state_dict()


def test_an_image_model_with_an_adapter_is_the_same_model(other_layouts: Layouts) -> None:
    joined = open_unet(other_layouts.animatediff)
    apart = open_unet(other_layouts.stable_diffusion, motion_adapter=other_layouts.motion_adapter)
    assert joined.keys() == apart.keys()
    for name, tensor in joined.items():
        assert torch.equal(tensor, apart[name]), name


def test_an_image_model_needs_an_adapter(other_layouts: Layouts) -> None:
    with pytest.raises(CheckpointError, match=r"stable-diffusion is an image model .* --motion-ad"):
        open_unet(other_layouts.stable_diffusion)


def test_a_video_model_needs_no_adapter(other_layouts: Layouts) -> None:
    with pytest.raises(CheckpointError, match=r"other has motion modules already: leave out"):
        open_unet(other_layouts.animatediff, motion_adapter=other_layouts.motion_adapter)


def test_an_adapter_must_be_one(other_layouts: Layouts) -> None:
    with pytest.raises(CheckpointError, match=r"vae is a AutoencoderKL, not a MotionAdapter"):
        open_unet(
            other_layouts.stable_diffusion, motion_adapter=other_layouts.stable_diffusion / "vae"
        )


def test_an_adapter_of_another_model_does_not_fit(
    other_layouts: Layouts, tiny_checkpoint: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"motion_adapter does not fit the unet of stable-"):
        open_unet(other_layouts.stable_diffusion, motion_adapter=tiny_checkpoint / "motion_adapter")


def test_a_float16_checkpoint_is_loaded_in_float32(tiny_checkpoint: Path) -> None:
    for tensor in open_unet(tiny_checkpoint).values():
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize(
    ("file_name", "values", "message"),
    [
        ("model_index.json", {"_class_name": None}, "does not say its _class_name"),
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            "is a FluxPipeline, which cannot be exported yet: use one of AnimateDiffPipeline, Sta",
        ),
        ("model_index.json", {"vae": None}, "other has no vae: it must be a whole pipeline"),
        ("model_index.json", {"vae": [None, None]}, "other has no vae"),
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "a vae of class AutoencoderTiny; an AnimateDiff checkpoint has AutoencoderKL",
        ),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "a text_encoder of class T5EncoderModel",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "NewestScheduler"},
            "has the scheduler NewestScheduler, which this diffusers",
        ),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "unet takes more than text"),
        ("unet/config.json", {"encoder_hid_dim_type": "ip_image_proj"}, "takes an image prompt"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels and its latents have 3"),
        ("text_encoder/config.json", {"use_attention_mask": True}, "needs an attention mask"),
    ],
)
def test_an_unsuitable_checkpoint_is_refused(
    file_name: str,
    values: dict[str, Any],
    message: str,
    other_checkpoint: Path,
    edit_checkpoint: EditCheckpoint,
) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, file_name, values)
    with pytest.raises(CheckpointError, match=message):
        open_family(open_checkpoint(checkpoint))


def test_an_absent_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent does not exist: give the folder of a chec"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"has no model_index\.json, so it is not a checkp"):
        open_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a file, but a checkpoint is a folder"):
        open_checkpoint(file)


def test_damaged_json_is_named(other_checkpoint: Path, edit_checkpoint: EditCheckpoint) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    (checkpoint / "vae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        open_family(open_checkpoint(checkpoint))
    (checkpoint / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_family(open_checkpoint(checkpoint))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "m.pt", "m.pth"])
def test_a_pickle_is_never_opened(
    name: str, other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    (checkpoint / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (checkpoint / "vae" / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=rf"vae/{name} is a pickle file.*safe_serialization"):
        make_vae_decoder(open_checkpoint(checkpoint))


def test_a_pickle_beside_safetensors_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a pickle file"):
        find_weights_variant(tmp_path)
    (tmp_path / "model.fp16.safetensors").write_bytes(b"")
    assert find_weights_variant(tmp_path) == "fp16"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_weights_variant(tmp_path) is None


def test_half_precision_copies_are_read_if_there_is_nothing_else(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    make_vae_decoder(open_checkpoint(checkpoint))


def test_damaged_weights_are_named(other_checkpoint: Path, edit_checkpoint: EditCheckpoint) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"other/vae has no weights"):
        make_vae_decoder(open_checkpoint(checkpoint))
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"other/vae cannot be opened as AutoencoderKL"):
        make_vae_decoder(open_checkpoint(checkpoint))


def test_missing_weights_are_not_made_up(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    from diffusers import AutoencoderKL

    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {"layers_per_block": 2})
    with pytest.raises(CheckpointError, match=r"other/vae lacks \d+ weights of AutoencoderKL, suc"):
        load_model(AutoencoderKL, checkpoint / "vae")


def test_a_hub_id_is_fetched_without_pickles(
    other_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def fetch(repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        calls.append((repo_id, allow_patterns))
        return str(other_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    checkpoint = open_checkpoint("someone/some-model")
    assert (checkpoint.folder, checkpoint.name) == (other_checkpoint, "some-model")
    ((repo_id, patterns),) = calls
    assert repo_id == "someone/some-model"
    assert {pattern.rpartition(".")[2] for pattern in patterns} == {"safetensors", "json", "txt"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), r"someone/model is not a folder here and cannot be f"),
        (ConnectionError("offline"), r"someone/model is not a folder here and cannot be fetched"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            r"someone/model is neither a folder here nor a model that the hub shows you",
        ),
    ],
)
def test_a_hub_id_that_cannot_be_fetched_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint("someone/model")


def test_the_index_may_name_parts_that_are_not_needed(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    checkpoint = edit_checkpoint(
        other_checkpoint, "model_index.json", {"safety_checker": ["x", "Y"], "requires": False}
    )
    assert json.loads((checkpoint / "model_index.json").read_text())["requires"] is False
    assert open_family(open_checkpoint(checkpoint)).family == "animatediff"
