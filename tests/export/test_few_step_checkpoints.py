"""What a checkpoint states of its second denoiser, and which one it may have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mutoscope.export import ExportError
from mutoscope.export.schedule_plan import plan_schedules
from tests.export.conftest import OpenModel
from tests.few_step_checkpoints import FEW_STEP

DEFAULTS_NAME = "mutoscope_defaults.json"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ([4], "few_step must be an object"),
        ({**FEW_STEP, "steps": 4}, "few_step has 'steps', which is not a default: use some of"),
        ({"scheduler": "lcm"}, "few_step lacks num_inference_steps: it must have scheduler, num_"),
        ({**FEW_STEP, "num_inference_steps": "4"}, "num_inference_steps must be a list"),
        ({**FEW_STEP, "num_inference_steps": [4, True]}, r"steps\[1\] must be a whole number"),
        ({**FEW_STEP, "num_inference_steps": []}, "few_step: num_inference_steps is empty"),
        ({**FEW_STEP, "num_inference_steps": [0, 4]}, "few_step: num_inference_steps is 0; it"),
        ({**FEW_STEP, "default_num_inference_steps": 3}, "is 3; it must be one of .*: use 4"),
        ({**FEW_STEP, "scheduler": 4}, "scheduler must be of type str"),
        ({**FEW_STEP, "reused_rows": [0]}, r"reused_rows has 0; it must have rows from 1,.* to 3,"),
        ({**FEW_STEP, "reused_rows": [3, 4]}, r"reused_rows has 4; .*: use \[3\]"),
        ({**FEW_STEP, "reused_rows": "3"}, "reused_rows must be a list"),
        (None, "has the folder unet_few_step and lacks few_step in mutoscope_defaults.json"),
    ],
)
def test_what_a_checkpoint_states_of_it_is_checked(
    few_step_checkpoint: Path,
    edit_checkpoint: Callable[..., Path],
    open_parts: OpenModel,
    stated: Any,
    message: str,
) -> None:
    edited = edit_checkpoint(few_step_checkpoint, DEFAULTS_NAME, {"few_step": stated})
    with pytest.raises(ExportError, match=message):
        open_parts(edited)


def test_a_statement_without_a_second_denoiser_is_refused(
    tiny_checkpoint: Path, edit_checkpoint: Callable[..., Path], open_parts: OpenModel
) -> None:
    edited = edit_checkpoint(tiny_checkpoint, DEFAULTS_NAME, {"few_step": FEW_STEP})
    with pytest.raises(ExportError, match=r"has few_step in .* and lacks the folder unet_few_step"):
        open_parts(edited)
    opened, _ = open_parts(edited, no_few_step=True)
    assert opened.few_step is None


def test_a_scheduler_that_the_checkpoint_states_wrongly_is_its_fault(
    few_step_checkpoint: Path, edit_checkpoint: Callable[..., Path], open_parts: OpenModel
) -> None:
    stated = {**FEW_STEP, "scheduler": "lcn"}
    edited = edit_checkpoint(few_step_checkpoint, DEFAULTS_NAME, {"few_step": stated})
    with pytest.raises(ExportError, match="few_step: scheduler 'lcn' is unknown"):
        plan_schedules(*open_parts(edited))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "a UNet3DConditionModel and unet a UNetMotion"),
        ({"time_cond_proj_dim": 8}, "has time_cond_proj_dim 8 and unet None; both must have one"),
        ({"motion_max_seq_length": 16}, "has motion_max_seq_length 16 and unet 32"),
    ],
)
def test_a_second_denoiser_of_another_kind_is_refused(
    few_step_checkpoint: Path,
    edit_checkpoint: Callable[..., Path],
    open_parts: OpenModel,
    values: dict[str, Any],
    message: str,
) -> None:
    edited = edit_checkpoint(few_step_checkpoint, "unet_few_step/config.json", values)
    with pytest.raises(ExportError, match=message):
        open_parts(edited)


def test_a_setting_that_a_file_leaves_out_is_the_usual_one(
    few_step_checkpoint: Path, edit_checkpoint: Callable[..., Path], open_parts: OpenModel
) -> None:
    config = json.loads((few_step_checkpoint / "unet_few_step" / "config.json").read_text())
    assert config["norm_eps"] == 1e-5
    values = {"norm_eps": None, "_diffusers_version": "0.1"}
    edited = edit_checkpoint(few_step_checkpoint, "unet_few_step/config.json", values)
    opened, _ = open_parts(edited)
    assert opened.few_step is not None
