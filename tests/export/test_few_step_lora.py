"""A second denoiser of few steps that a LoRA makes, and LoRAs beside a second denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline

from mutoscope.export import ExportError
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.provenance import make_provenance
from mutoscope.export.schedule_plan import plan_schedules
from mutoscope.runtime.errors import MutoscopeError, ParameterError
from tests.conftest import Layouts, RunCommand
from tests.export.conftest import OpenModel
from tests.few_step_checkpoints import STEPS, load_unet
from tests.lora_layouts import make_matrices, name_kohya, name_peft, shapes_of, write_lora

# Both sides add the same two float32 products to weights of about 1; the order may differ.
WEIGHT_TOLERANCE = 2.5e-7


@pytest.fixture
def unet_lora(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA for the denoiser of `tiny_checkpoint`."""
    matrices = make_matrices({"unet": load_unet(tiny_checkpoint / "unet")})
    return write_lora(tmp_path / "few-step.safetensors", name_peft(matrices))


def test_a_lora_makes_the_second_denoiser_as_diffusers_fuses_it(
    tiny_checkpoint: Path, unet_lora: Path, open_parts: OpenModel
) -> None:
    opened, family = open_parts(tiny_checkpoint, few_step_lora=f"{unet_lora}:0.7")
    first, second = (family.component_makers[name]() for name in ("unet", "unet_few_step"))
    with quiet_libraries():
        pipeline = AnimateDiffPipeline.from_pretrained(tiny_checkpoint)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(unet_lora.parent), weight_name=unet_lora.name)
    pipeline.fuse_lora(components=["unet"], lora_scale=0.7)
    pipeline.unload_lora_weights()
    assert_same_weights(second, pipeline.unet.state_dict())
    assert_same_weights(first, before)
    assert any(
        float((value - before[name]).abs().max()) > 0.01
        for name, value in pipeline.unet.state_dict().items()
    )
    provenance = make_provenance(opened, family, "float32", "float32", 0)
    assert provenance["few_step_lora"]["file"] == "few-step.safetensors"
    assert provenance["few_step_lora"]["scale"] == 0.7
    assert "loras" not in provenance


def assert_same_weights(component: Any, expected: Mapping[str, torch.Tensor]) -> None:
    found = component.module.unet.state_dict()
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        assert error <= WEIGHT_TOLERANCE, (name, error)


def test_a_lora_makes_it_of_an_image_model_with_its_adapter(
    other_layouts: Layouts, tmp_path: Path, open_parts: OpenModel
) -> None:
    unet = load_unet(other_layouts.animatediff / "unet")
    lora = write_lora(tmp_path / "motion.safetensors", name_peft(make_matrices({"unet": unet})))
    opened, family = open_parts(
        other_layouts.stable_diffusion,
        motion_adapter=other_layouts.motion_adapter,
        few_step_lora=str(lora),
    )
    shapes = shapes_of(family.component_makers["unet_few_step"]().module.unet)
    assert shapes == shapes_of(unet)
    planned, _ = plan_schedules(
        opened, family, few_step_scheduler="tcd", few_step_counts=(8, 2), num_inference_steps=(5,)
    )
    assert planned["euler"].step_counts == (5,)
    assert type(planned["few-step"].scheduler).__name__ == "TCDScheduler"
    assert planned["few-step"].step_counts == (2, 8)


def test_the_largest_count_of_a_lora_becomes_the_default(
    tiny_checkpoint: Path, unet_lora: Path, open_parts: OpenModel
) -> None:
    opened, family = open_parts(tiny_checkpoint, few_step_lora=str(unet_lora))
    planned, defaults = plan_schedules(opened, family)
    assert (planned["few-step"].step_counts, defaults.num_inference_steps) == (STEPS, 4)
    _, defaults = plan_schedules(opened, family, few_step_counts=(6, 3))
    assert (defaults.scheduler, defaults.num_inference_steps) == ("few-step", 6)


def test_other_loras_change_both_denoisers(
    few_step_checkpoint: Path, unet_lora: Path, open_parts: OpenModel
) -> None:
    _, plain = open_parts(few_step_checkpoint)
    _, styled = open_parts(few_step_checkpoint, loras=[str(unet_lora)])
    name = "conv_in.weight"
    first, second = (
        styled.component_makers[unet]().module.unet.state_dict()[name]
        - plain.component_makers[unet]().module.unet.state_dict()[name]
        for unet in ("unet", "unet_few_step")
    )
    assert float(first.abs().max()) > 0.01
    torch.testing.assert_close(first, second, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"few_step_lora": "LORA"}, "has a few-step denoiser of its own, so the LoRA few-step"),
        ({"few_step_lora": "LORA", "no_few_step": True}, "few_step_lora and no_few_step do not"),
        ({"few_step_lora": "LORA", "preset": "lcm"}, "few_step_lora and preset do not go together"),
        ({"preset": "lightning-4"}, "the preset lightning-4 is for one .* add --no-few-step"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    few_step_checkpoint: Path,
    unet_lora: Path,
    open_parts: OpenModel,
    options: dict[str, Any],
    message: str,
) -> None:
    given = {name: str(unet_lora) if value == "LORA" else value for name, value in options.items()}
    with pytest.raises(MutoscopeError, match=message):
        open_parts(few_step_checkpoint, **given)


@pytest.mark.parametrize("option", ["few_step_scheduler", "few_step_counts"])
def test_settings_of_a_lora_are_refused_without_one(
    few_step_checkpoint: Path, tiny_checkpoint: Path, open_parts: OpenModel, option: str
) -> None:
    value: Any = {"few_step_scheduler": "lcm", "few_step_counts": (4,)}[option]
    for checkpoint in (few_step_checkpoint, tiny_checkpoint):
        with pytest.raises(ParameterError, match=f"{option} is given without few_step_lora"):
            plan_schedules(*open_parts(checkpoint), **{option: value})


def test_a_lora_that_changes_what_both_share_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, open_parts: OpenModel
) -> None:
    with quiet_libraries():
        pipeline = AnimateDiffPipeline.from_pretrained(tiny_checkpoint)
    models = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    matrices = make_matrices(models, lambda module: module.endswith(("to_q", "q_proj")))
    lora = write_lora(tmp_path / "both.safetensors", name_kohya(matrices))
    with pytest.raises(ExportError, match="changes 2 weights of the text_encoder, which both"):
        open_parts(tiny_checkpoint, few_step_lora=str(lora))


def test_a_lora_is_refused_by_a_family_that_takes_none(
    i2vgen_checkpoint: Path, unet_lora: Path, open_parts: OpenModel
) -> None:
    with pytest.raises(ExportError, match="takes no LoRAs"):
        open_parts(i2vgen_checkpoint, few_step_lora=str(unet_lora))


def test_the_command_refuses_step_counts_of_a_lora_where_graphs_are_added(
    run_command: RunCommand, tmp_path: Path
) -> None:
    arguments = ("export", tmp_path, "-o", tmp_path / "bundle", "--dtype=float16", "--add")
    result = run_command(*arguments, "--few-step-counts=4", "--few-step-scheduler=lcm")
    assert result.exit_code == 2
    assert "leave out --few-step-scheduler, --few-step-counts" in result.stderr
