"""The file names that weights have in real checkpoints, and what is wrong with some of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from mutoscope.export import CheckpointError
from mutoscope.export.checkpoint import load_model
from mutoscope.export.hub import name_component, name_path
from mutoscope.export.weight_files import find_weight_files, read_shapes, read_tensors

State = dict[str, torch.Tensor]
SHARD_SIZE = "4KB"  # smaller than each of the tiny models


@pytest.fixture
def copy_component(other_checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that copies a component's folder, to be changed."""

    def copy(component: str) -> Path:
        return Path(shutil.copytree(other_checkpoint / component, tmp_path / "other" / component))

    return copy


@pytest.fixture
def vae(copy_component: Callable[[str], Path]) -> Path:
    return copy_component("vae")


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def edit_weights(folder: Path, edit: Callable[[State], State]) -> None:
    (path,) = folder.glob("*.safetensors")
    weights = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file(edit(weights), path, metadata={"format": "pt"})


MODELS = pytest.mark.parametrize(
    ("component", "model_class"), [("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)]
)


@MODELS
@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_are_found_as_the_libraries_write_them(
    component: str,
    model_class: Any,
    variant: str | None,
    sharded: bool,
    copy_component: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = copy_component(component)
    expected = load_model(model_class, source).state_dict()
    folder = tmp_path / "saved" / component
    size = {"max_shard_size": SHARD_SIZE} if sharded else {}
    model_class.from_pretrained(source).save_pretrained(folder, variant=variant, **size)
    files = find_weight_files(folder)
    assert files.variant == variant
    assert (len(files.paths) > 1) == sharded
    assert same(load_model(model_class, folder).state_dict(), expected)


def test_shards_are_found_under_the_names_of_older_versions(vae: Path, tmp_path: Path) -> None:
    expected = load_model(AutoencoderKL, vae).state_dict()
    folder = tmp_path / "saved" / "vae"
    AutoencoderKL.from_pretrained(vae).save_pretrained(
        folder, variant="fp16", max_shard_size=SHARD_SIZE
    )
    index = folder / "diffusion_pytorch_model.safetensors.index.fp16.json"
    content = index.read_text().replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.fp16.index.json").write_text(content)
    index.unlink()
    for path in folder.glob("*.safetensors"):
        name = path.name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
        path.rename(folder / name)
    assert find_weight_files(folder).variant == "fp16"
    assert same(load_model(AutoencoderKL, folder).state_dict(), expected)


def test_plain_weights_are_preferred_then_fp16(vae: Path) -> None:
    plain = vae / "diffusion_pytorch_model.safetensors"
    for variant in ("bf16", "fp16"):
        shutil.copy(plain, vae / f"diffusion_pytorch_model.{variant}.safetensors")
    (vae / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert find_weight_files(vae).paths == (plain,)
    plain.unlink()
    assert find_weight_files(vae).variant == "fp16"
    (vae / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert find_weight_files(vae).variant == "bf16"


def test_a_missing_shard_is_named(vae: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "vae"
    AutoencoderKL.from_pretrained(vae).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    count = len(find_weight_files(folder).paths)
    lost = next(folder.glob("*-00002-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(
        CheckpointError, match=rf"^saved/vae lacks {lost.name} \(1 of its {count} shards\): copy or"
    ):
        load_model(AutoencoderKL, folder)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"^saved/vae has .* but no \.safetensors\.index\.js"):
        load_model(AutoencoderKL, folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_one_line(content: str, vae: Path) -> None:
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"index\.json names no shards \(damaged\?\): copy or"
    ):
        load_model(AutoencoderKL, vae)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_file_that_is_cut_off_is_named(kept: int, vae: Path) -> None:
    path = vae / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"^other/vae/diff.*\.safetensors is not a whole safetensors file \("
    ):
        find_weight_files(vae)


def test_a_clone_without_git_lfs_is_named(vae: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 334643276\n"
    (vae / "diffusion_pytorch_model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"^other/vae/.* is only a pointer of git-lfs.* pull"):
        load_model(AutoencoderKL, vae)


def test_a_checkpoint_of_the_hub_is_called_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--some-model" / "snapshots" / "0123abcd"
    (folder / "vae").mkdir(parents=True)
    assert name_path(folder) == "some-model"
    assert name_component(folder / "vae") == "some-model/vae"
    (tmp_path / "blob").touch()
    (folder / "adapter.safetensors").symlink_to(tmp_path / "blob")
    assert name_path(folder / "adapter.safetensors") == "adapter.safetensors"
    with pytest.raises(CheckpointError, match=r"^some-model/vae has no weights"):
        find_weight_files(folder / "vae")


def test_the_layers_of_a_clip_skip_are_left_out(copy_component: Callable[[str], Path]) -> None:
    folder = copy_component("text_encoder")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(CLIPTextModel, folder)
    assert model.config.num_hidden_layers == config["num_hidden_layers"]


def test_a_file_of_another_name_is_not_taken_for_weights(vae: Path) -> None:
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"^other/vae/vae\.safetensors has no name that diff"):
        find_weight_files(vae)


def test_a_configuration_must_be_there(vae: Path) -> None:
    (vae / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json is missing: save the pipeline"):
        load_model(AutoencoderKL, vae)


def test_the_attention_of_old_vaes_is_read(vae: Path) -> None:
    expected = load_model(AutoencoderKL, vae).state_dict()
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: State) -> State:
        renamed = {}
        for key, tensor in weights.items():
            for new, old in old_names.items():
                key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            renamed[key] = tensor
        return renamed

    edit_weights(vae, rename)
    names = read_shapes(find_weight_files(vae).paths)
    assert "decoder.mid_block.attentions.0.query.weight" in names
    assert same(load_model(AutoencoderKL, vae).state_dict(), expected)


def test_what_old_text_encoders_saved_besides_is_left_out(
    copy_component: Callable[[str], Path],
) -> None:
    folder = copy_component("text_encoder")
    expected = load_model(CLIPTextModel, folder).state_dict()

    def add(weights: State) -> State:
        extra = {
            "text_model.embeddings.position_ids": torch.arange(20)[None],
            "vision_model.post_layernorm.weight": torch.ones(3),
            "logit_scale": torch.ones(()),
        }
        return weights | extra

    edit_weights(folder, add)
    assert same(load_model(CLIPTextModel, folder).state_dict(), expected)


@MODELS
def test_weights_without_a_place_in_the_model_are_refused(
    component: str, model_class: Any, copy_component: Callable[[str], Path]
) -> None:
    folder = copy_component(component)
    edit_weights(folder, lambda weights: weights | {"other.weight": torch.ones(2)})
    with pytest.raises(
        CheckpointError,
        match=rf"^other/{component} has 1 weights that {model_class.__name__} has not, such as oth",
    ):
        load_model(model_class, folder)


def test_a_video_unet_is_not_opened_as_an_image_unet(other_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other/unet .*UNet2DConditionModel"):
        load_model(UNet2DConditionModel, other_checkpoint / "unet")


def test_float32_weights_are_not_copied(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = AutoencoderKL.from_pretrained(vae)
    places = {key: tensor.data_ptr() for key, tensor in opened.state_dict().items()}

    def open_again(*_: Any, **__: Any) -> tuple[Any, dict[str, Any]]:
        return opened, {"missing_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", open_again)
    loaded = load_model(AutoencoderKL, vae)
    assert {key: tensor.data_ptr() for key, tensor in loaded.state_dict().items()} == places


def test_tensors_are_read_as_float32_and_integers_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = {f"weight{i}": torch.randn(3, 5).half() for i in range(150)}
    save_file(weights | {"ids": torch.arange(4)}, path)
    read = dict(read_tensors([path]))
    assert read.keys() == weights.keys() | {"ids"}
    assert all(torch.equal(read[key], weights[key].float()) for key in weights)
    assert read["weight7"].dtype == torch.float32
    assert read["ids"].dtype == torch.int64
    assert read_shapes([path])["weight149"] == (3, 5)
