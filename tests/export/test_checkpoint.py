"""What a checkpoint may look like, and the one line for each way in which it may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderTiny
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from mutoscope.export.checkpoint import CHECKPOINT_PATTERNS, load_model, open_checkpoint
from mutoscope.export.components.motion_unet import make_unet, open_motion_unet
from mutoscope.export.components.vae import make_vae_decoder
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families import open_family
from mutoscope.export.hub import fetch_folder
from tests.conftest import Layouts

EditCheckpoint = Callable[..., Path]


def open_unet(checkpoint: Path, **options: Any) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(checkpoint, **options)
    open_family(opened)
    return make_unet(open_motion_unet(opened)).module.state_dict()


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
    with pytest.raises(CheckpointError, match=r"is a file, but a .*: add --single-file for S"):
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
        make_vae_decoder(checkpoint / "vae")


def test_half_precision_copies_are_read_if_there_is_nothing_else(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    make_vae_decoder(checkpoint / "vae")


def test_damaged_weights_are_named(other_checkpoint: Path, edit_checkpoint: EditCheckpoint) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    weights = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"other/vae has no weights"):
        make_vae_decoder(checkpoint / "vae")
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"^other/vae/diff.* is not a whole safetensors fi"):
        make_vae_decoder(checkpoint / "vae")


def test_missing_weights_are_not_made_up(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    from diffusers import AutoencoderKL

    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {"layers_per_block": 2})
    with pytest.raises(CheckpointError, match=r"other/vae lacks \d+ weights of AutoencoderKL, suc"):
        load_model(AutoencoderKL, checkpoint / "vae")


@pytest.mark.parametrize("option", ["vae", "preview_vae"])
def test_another_vae_is_found(option: str, other_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(other_checkpoint)
    assert (checkpoint.vae, checkpoint.preview_vae, checkpoint.preset) == (None, None, None)
    tiny = tmp_path / "tiny-vae"
    AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).save_pretrained(tiny)  # fmt: skip
    for folder in (other_checkpoint / "vae", tiny):
        found = open_checkpoint(other_checkpoint, **{option: str(folder)})
        assert getattr(found, option) == folder


def test_what_is_no_vae_is_refused(other_checkpoint: Path, tmp_path: Path) -> None:
    def open_with(vae: Path) -> None:
        open_checkpoint(other_checkpoint, vae=vae)

    with pytest.raises(
        CheckpointError, match=r"absent does not exist: give the folder of a VAE, o"
    ):
        open_with(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"has no config\.json, so it is not a VAE in diffus"):
        open_with(tmp_path)
    with pytest.raises(CheckpointError, match=r"other is a whole checkpoint: .* it, .*other/vae$"):
        open_with(other_checkpoint)
    with pytest.raises(
        CheckpointError, match=r"unet is a UNetMotionModel, not a VAE: use Autoenco"
    ):
        open_with(other_checkpoint / "unet")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(
        CheckpointError, match=r"has no weights \(\*\.safetensors\): save the pipel"
    ):
        open_with(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json is a file, but a VAE is a folder"):
        open_with(tmp_path / "config.json")


def test_a_motion_adapter_may_be_one_file(
    other_layouts: Layouts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (file,) = other_layouts.motion_adapter.glob("*.safetensors")
    opened = open_checkpoint(other_layouts.stable_diffusion, motion_adapter=file)
    assert opened.motion_adapter == file
    calls: list[tuple[str, str]] = []

    def fetch(repo_id: str, file_name: str) -> str:
        calls.append((repo_id, file_name))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    given = "ByteDance/AnimateDiff-Lightning/animatediff_lightning_4step_diffusers.safetensors"
    opened = open_checkpoint(other_layouts.stable_diffusion, motion_adapter=given)
    assert opened.motion_adapter == file
    assert calls == [tuple(given.rsplit("/", 1))]
    pickle = tmp_path / "mm_sd_v15_v2.ckpt"
    pickle.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        CheckpointError, match=r"mm_sd_v15_v2\.ckpt is a pickle file, which can run"
    ):
        open_checkpoint(other_layouts.stable_diffusion, motion_adapter=pickle)


def test_an_adapter_repository_of_single_files_says_so(
    other_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"such as ByteDance/AnimateDiff-Lightning/FILE\.safetensors$"
    ):
        open_checkpoint(other_checkpoint, motion_adapter="ByteDance/AnimateDiff-Lightning")


def test_a_component_that_is_missing_is_named(
    other_checkpoint: Path, edit_checkpoint: EditCheckpoint
) -> None:
    checkpoint = edit_checkpoint(other_checkpoint, "vae/config.json", {})
    shutil.rmtree(checkpoint / "vae")
    with pytest.raises(CheckpointError, match=r"^other has no vae: it must be a whole pipeline, s"):
        open_family(open_checkpoint(checkpoint))


def test_half_precision_copies_are_fetched_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote = [
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json"),
        *("vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "model.ckpt"),
        *("unet/diffusion_pytorch_model.non_ema.safetensors", "v1-5.safetensors"),
        *("safety_checker/config.json", "safety_checker/model.safetensors", "vae/weights.bin"),
    ]

    def fetch(repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        for name in filter_repo_objects(
            remote, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert fetch_folder("owner/name", CHECKPOINT_PATTERNS) == tmp_path
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert fetched == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    }
    assert not list(tmp_path.glob("*.safetensors"))


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
            RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError),
            r"someone/model is not in its repository on the hub: check the name of the file",
        ),
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
