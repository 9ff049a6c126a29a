"""The one line for each LoRA that cannot be fused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mutoscope.export.errors import CheckpointError
from mutoscope.export.loras import (
    Lora,
    LoraFile,
    check_lora_components,
    check_loras,
    fuse_loras,
    parse_lora,
    read_loras,
)
from tests.lora_layouts import (
    LoraMatrices,
    SmallModel,
    Tensors,
    make_matrices,
    name_kohya,
    name_peft,
    shapes_of,
    write_lora,
)

SQUARE = torch.ones(4, 4)
DOWN, UP = {"unet.to_q.lora_A.weight": SQUARE}, {"unet.to_q.lora_B.weight": SQUARE}


@pytest.fixture
def model() -> SmallModel:
    torch.manual_seed(3)
    return SmallModel()


@pytest.fixture
def matrices(model: SmallModel) -> LoraMatrices:
    return make_matrices({"unet": model})


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Lora]]:
    """A function that writes tensors to a LoRA file and reads it."""

    def write_and_read(
        tensors: Tensors, peft_config: dict[str, Any] | None = None, scale: float = 1.0
    ) -> list[Lora]:
        path = write_lora(tmp_path / "style.safetensors", tensors, peft_config)
        return read_loras([LoraFile(path, scale)])

    return write_and_read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.safetensors", r"LoRA gone\.safetensors does not exist: give a \.safetensors file"),
        ("gone.safetensors:0.5", r"LoRA gone\.safetensors does not exist"),
        ("C:gone", r"LoRA C:gone does not exist"),
        ("", r"is a folder|does not exist"),
        ("here.safetensors:strong", r"scale of the LoRA here\.safetensors is 'strong', which is "),
        ("here.safetensors:", r"scale of the LoRA here\.safetensors is '', which is no number"),
        ("here.safetensors:nan", r"is nan: use a finite number"),
        ("here.safetensors:inf", r"is inf: use a finite number"),
        ("old.ckpt", r"old\.ckpt is a pickle file, .*torch\.load\(.old\.ckpt., weights_only"),
        ("old.bin:0.5", r"old\.bin is a pickle file"),
        ("folder", r"LoRA folder is a folder: give .* such as folder/style\.safetensors"),
        ("style.txt", r"style\.txt does not end in \.safetensors: only such files are read"),
    ],
)
def test_what_is_no_lora_file_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in (
        "here.safetensors",
        "old.ckpt",
        "old.bin",
        "style.txt",
        "folder/style.safetensors",
    ):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        parse_lora(text)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"not a LoRA")
    with pytest.raises(CheckpointError, match=r"style\.safetensors cannot be read as safetensors"):
        read_loras([LoraFile(path)])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_a.dora_scale": SQUARE}, "is a DoRA, and only plain LoRA and LoCon"),
        ({"unet.a.lora_magnitude_vector": SQUARE}, "is a DoRA"),
        ({"lora_unet_a.hada_w1_a": SQUARE}, "is a LoHa"),
        ({"lora_unet_a.lokr_w1": SQUARE}, "is a LoKr"),
        ({"lora_unet_a.oft_diag": SQUARE}, "is an OFT"),
        ({"lora_unet_a.diff": SQUARE}, "is a full weight difference"),
        ({"unet.a.lora_B.bias": SQUARE}, "is a LoRA with biases"),
        ({"lora_unet_a.diff_b": SQUARE}, "is a LoRA with biases"),
        ({"emb_params": SQUARE}, "is a textual inversion"),
        ({"a.weight": SQUARE}, r"1 keys of no known LoRA layout \(a\.weight\): use a LoRA in"),
        (
            {f"model.{i}.weight": SQUARE for i in range(5)} | DOWN | UP,
            r"5 keys of .* \(model\.0\.weight, model\.1\.weight, model\.2\.weight, \.\.\.\)",
        ),
        ({}, r"0 keys of no known LoRA layout: use"),
        (DOWN, r"has unet\.to_q\.lora_A\.weight without the up matrix to it"),
        (UP, r"has unet\.to_q\.lora_B\.weight without the down matrix to it"),
        ({"lora_unet_a.alpha": torch.ones(())}, r"lora_unet_a\.alpha without the down matrix"),
        (
            DOWN | UP | {"unet.to_q.lora.down.weight": SQUARE},
            r"the same matrix twice, as unet\.to_q\.lora\.down\.weight and as unet\.to_q\.lora_A",
        ),
        (
            DOWN | {"unet.to_q.lora_B.weight": torch.ones(4, 3)},
            r"do not make a LoRA at unet\.to_q\.lora_A\.weight \(down \[4, 4\], up \[4, 3\]\)",
        ),
        (DOWN | {"unet.to_q.lora_B.weight": torch.ones(4, 4, 3, 3)}, "do not make a LoRA"),
        (DOWN | {"unet.to_q.lora_B.weight": torch.ones(4)}, "do not make a LoRA"),
        (DOWN | UP | {"unet.to_q.alpha": torch.ones(2)}, "do not make a LoRA"),
        (
            {
                f"lora_unet_{block}_1_x.lora_{role}.weight": SQUARE
                for block in ("input_blocks_4", "down_blocks_1")
                for role in ("down", "up")
            },
            r"names the blocks of the unet in two ways \(lora_unet_input_.* and lora_unet_down_",
        ),
    ],
)
def test_what_cannot_be_fused_is_refused(
    tensors: Tensors, message: str, read: Callable[..., list[Lora]]
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tensors)
    assert "style.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dora_that_its_peft_configuration_names_is_refused(
    read: Callable[..., list[Lora]], matrices: LoraMatrices
) -> None:
    with pytest.raises(CheckpointError, match="is a DoRA"):
        read(name_peft(matrices), {"unet.use_dora": True})


def test_names_that_the_model_lacks_are_refused(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    matrices["unet"] |= {f"blocks.{i}": matrices["unet"]["to_q"] for i in range(4)}
    loras = read(name_kohya(matrices))
    message = (
        r"style\.safetensors has 4 of 7 weights for the unet that this model does not have "
        r"\(lora_unet_blocks_0\.lora_down\.weight, lora_unet_blocks_1\.lora_down\.weight, "
        r"lora_unet_blocks_2\.lora_down\.weight, \.\.\.\): it is a LoRA of another model"
    )
    before = model.to_q.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        check_loras(loras, "unet", shapes_of(model))
    with pytest.raises(CheckpointError, match=message):
        fuse_loras(model, loras, "unet")
    assert torch.equal(model.to_q.weight, before)


@pytest.mark.parametrize("name", ["input_blocks_99_7_x", "input_blocks_x_0", "middle_block_9_x"])
def test_original_names_that_no_unet_has_are_refused(
    name: str, model: SmallModel, read: Callable[..., list[Lora]]
) -> None:
    keys = (f"lora_unet_{name}.lora_down.weight", f"lora_unet_{name}.lora_up.weight")
    loras = read(dict.fromkeys(keys, SQUARE))
    with pytest.raises(CheckpointError, match=rf"1 of 1 weights .*{name}"):
        check_loras(loras, "unet", shapes_of(model))


def test_a_shape_that_does_not_fit_is_refused(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    part = matrices["unet"]["conv1"]
    matrices["unet"]["conv1"] = dataclasses.replace(part, down=torch.ones(3, 5, 3, 3))
    message = (
        r"does not fit the unet: lora_unet_conv1\.lora_down\.weight makes \[8, 5, 3, 3\], and "
        r"conv1\.weight is \[8, 4, 3, 3\]: it is a LoRA of another model"
    )
    with pytest.raises(CheckpointError, match=message):
        check_loras(read(name_kohya(matrices)), "unet", shapes_of(model))


def test_one_weight_under_two_names_is_refused(read: Callable[..., list[Lora]]) -> None:
    names = ("lora_unet_mid_block_to_q", "unet.mid_block.to_q")
    keys = [f"{name}.lora_{role}.weight" for name in names for role in "AB"]
    message = r"changes mid_block\.to_q\.weight twice, by lora_unet_mid_block_to_q\S+ and by unet\."
    with pytest.raises(CheckpointError, match=message):
        check_loras(read(dict.fromkeys(keys, SQUARE)), "unet", {"mid_block.to_q.weight": (4, 4)})


def test_a_peft_configuration_without_a_number_is_refused(
    matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    with pytest.raises(CheckpointError, match=r"peft configuration that gives no alpha for conv1"):
        read(name_peft(matrices), {"unet.lora_alpha": "much"})


def test_a_component_that_the_model_lacks_is_refused(
    matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    loras = read(name_kohya({"text_encoder_2": matrices["unet"]}))
    check_lora_components(loras, ("unet", "text_encoder_2"))
    with pytest.raises(CheckpointError, match=r"changes 3 weights of a text_encoder_2, which this"):
        check_lora_components(loras, ("unet", "text_encoder"))


def test_values_that_are_not_finite_are_refused(
    model: SmallModel, matrices: LoraMatrices, read: Callable[..., list[Lora]]
) -> None:
    matrices["unet"]["to_q"].down[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite at lora_unet_to_q\.lora_down\.weight"):
        fuse_loras(model, read(name_kohya(matrices)), "unet")
