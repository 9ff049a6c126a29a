"""A second denoiser of few steps: its component, its tables, the defaults of its bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, LCMScheduler

from mutoscope.export import ExportError, ExportParityError, export_checkpoint
from mutoscope.export.few_step import check_same_inputs
from mutoscope.export.schedule import trace_schedule
from mutoscope.export.schedule_plan import plan_schedules
from mutoscope.export.verification import compare_with_checkpoint
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.manifest import Manifest, TensorRecord
from mutoscope.runtime.schedule import ScheduleTable
from tests.conftest import MakeOnce
from tests.export.component_parity import TOLERANCE, run_graph
from tests.export.conftest import OpenModel
from tests.export.traced_graphs import traces_from
from tests.few_step_checkpoints import FEW_STEP, STEPS, load_unet
from training.shallow import run_shallow, run_whole

# Float32 in another order of additions moves a few values across the middle between two levels.
MAX_DIFFERENCE = 2


@pytest.fixture(scope="session")
def few_step_bundle(few_step_checkpoint: Path, tiny_bundle: Path, make_once: MakeOnce) -> Path:
    """A bundle of `few_step_checkpoint` with DDIM tables for 3 and 8 steps.

    What it shares with `tiny_checkpoint` was traced for `tiny_bundle`.
    """

    def fill(folder: Path) -> Path:
        with traces_from(tiny_bundle, ("text_encoder", "unet", "vae_decoder")):
            return export_checkpoint(
                few_step_checkpoint, folder / "few-step", num_inference_steps=(3, 8)
            ).bundle

    return make_once("bundle-few-step", fill)


def read_manifest(bundle: Path) -> Manifest:
    return Manifest.load(bundle / "manifest.json")


def test_the_second_denoiser_is_a_component_after_the_first(few_step_bundle: Path) -> None:
    manifest = read_manifest(few_step_bundle)
    names = list(manifest.components)
    denoisers = ["unet", "unet_reuse", "unet_few_step", "unet_few_step_reuse"]
    assert names == ["text_encoder", *denoisers, "vae_decoder"]
    first, second = manifest.components["unet"], manifest.components["unet_few_step"]
    assert (second.inputs, second.outputs) == (first.inputs, first.outputs)
    assert second.weights_of is None
    assert manifest.components["unet_few_step_reuse"].weights_of == "unet_few_step"
    assert second.variants == {"float32": "unet_few_step/model.onnx"}
    assert second.cpu_graphs == {"float32": "unet_few_step/model_cpu.onnx"}
    assert manifest.provenance["component_classes"]["unet_few_step"] == "UNetMotionModel"


def test_the_second_denoiser_computes_what_its_own_weights_do(
    few_step_checkpoint: Path, few_step_bundle: Path, open_parts: OpenModel
) -> None:
    _, family = open_parts(few_step_checkpoint)
    component = family.component_makers["unet_few_step"]()
    assert component.name == "unet_few_step"
    inputs = component.make_inputs(component.parity_sizes[-1], seed=1)
    sample, text = (torch.from_numpy(inputs[name]) for name in ("sample", "encoder_hidden_states"))
    outputs = []
    for folder in ("unet_few_step", "unet"):
        with torch.no_grad():
            output = load_unet(few_step_checkpoint / folder)(
                sample,
                torch.from_numpy(inputs["timestep"]),
                text.repeat_interleave(sample.shape[2], dim=0),
            ).sample.numpy()
        outputs.append(output)
    found = run_graph(few_step_bundle, "unet_few_step", inputs)
    np.testing.assert_allclose(found, outputs[0], atol=TOLERANCE)
    assert np.abs(found - outputs[1]).max() > 0.1  # the first denoiser is another


def test_its_tables_name_it_and_leave_guidance_out(
    few_step_checkpoint: Path, few_step_bundle: Path
) -> None:
    schedules = read_manifest(few_step_bundle).schedules
    assert {name: list(tables) for name, tables in schedules.items()} == {
        "few-step": ["1", "2", "4"],
        "few-step-reuse": ["4"],
        "ddim": ["3", "8"],
    }
    # The first that has a number of steps is what runs where no scheduler is named.
    assert list(schedules) == ["few-step", "few-step-reuse", "ddim"]
    own = DDIMScheduler.from_pretrained(few_step_checkpoint, subfolder="scheduler")
    lcm = LCMScheduler.from_config(own.config)
    assert lcm.config.prediction_type == "v_prediction"
    for steps in STEPS:
        table = ScheduleTable.load(few_step_bundle / schedules["few-step"][str(steps)])
        assert (table.denoiser, table.scheduler) == ("unet_few_step", "LCMScheduler")
        assert not any(row.guidance for row in table.rows)
        expected = trace_schedule(lcm, steps)
        assert tuple(replace(row, guidance=True) for row in table.rows) == expected.rows
    reusing = ScheduleTable.load(few_step_bundle / schedules["few-step-reuse"]["4"])
    shallow = "unet_few_step_reuse"
    assert [row.denoiser for row in reusing.rows] == [None, None, shallow, shallow]
    assert replace(reusing, rows=tuple(replace(row, denoiser=None) for row in reusing.rows)) == (
        ScheduleTable.load(few_step_bundle / schedules["few-step"]["4"])
    )
    table = ScheduleTable.load(few_step_bundle / schedules["ddim"]["8"])
    assert table.denoiser is None
    assert all(row.guidance for row in table.rows)


def test_the_default_is_to_sample_with_it(few_step_bundle: Path) -> None:
    defaults = read_manifest(few_step_bundle).defaults
    assert (defaults.scheduler, defaults.num_inference_steps) == ("few-step-reuse", 4)
    assert defaults.guidance_scale == 7.5  # of the first denoiser


def test_without_shallow_parts_nothing_is_reused(
    few_step_checkpoint: Path, open_parts: OpenModel
) -> None:
    opened, family = open_parts(few_step_checkpoint)
    planned, defaults = plan_schedules(opened, family, reuses_features=False)
    assert list(planned) == ["few-step", "ddim"]
    assert (defaults.scheduler, defaults.num_inference_steps) == ("few-step", 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("scheduler", ["few-step", "few-step-reuse"])
def test_a_clip_is_that_of_diffusers_with_its_weights_and_no_guidance(
    few_step_checkpoint: Path, few_step_bundle: Path, scheduler: str
) -> None:
    reference = AnimateDiffPipeline.from_pretrained(
        few_step_checkpoint,
        unet=load_unet(few_step_checkpoint / "unet_few_step"),
        dtype=torch.float32,
    )
    reference.scheduler = LCMScheduler.from_config(reference.scheduler.config)
    reference.set_progress_bar_config(disable=True)
    if scheduler == "few-step-reuse":
        reference.unet.forward = ReusingUNet(load_unet(few_step_checkpoint / "unet_few_step"))
    size = {"num_frames": 3, "height": 16, "width": 24}
    prompt, seed = "a red circle moves left", 5
    with VideoPipeline.open(few_step_bundle) as pipeline:
        video = pipeline.generate(prompt, seed=seed, scheduler=scheduler, **size)
    found = video.frames.astype(np.int64)
    output = reference(
        prompt,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **size,
    )
    expected = np.round(output.frames[0] * 255).astype(np.int64)
    assert expected.std() > 1  # an even picture would prove nothing
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE


class ReusingUNet:
    """A denoiser that runs the reused rows with its last layer alone."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.row, self.deep = unet, 0, torch.empty(0)

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, **named: Any
    ) -> SimpleNamespace:
        given = (sample, timestep.expand(len(sample)), named["encoder_hidden_states"])
        if self.row in FEW_STEP["reused_rows"]:
            output = run_shallow(self.unet, *given, self.deep)
        else:
            output, self.deep = run_whole(self.unet, *given)
        self.row += 1
        return SimpleNamespace(sample=output)


def test_a_bundle_is_compared_with_both_denoisers_of_its_checkpoint(
    few_step_bundle: Path, few_step_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    figures = compare_with_checkpoint(few_step_bundle, few_step_checkpoint)
    assert min(record.psnr_db for record in figures["unet_few_step"]) > 100
    with pytest.raises(ExportParityError, match="of another kind"):
        compare_with_checkpoint(few_step_bundle, few_step_checkpoint, no_few_step=True)
    with pytest.raises(ExportParityError, match="of another kind"):
        compare_with_checkpoint(few_step_bundle, tiny_checkpoint)


def test_diffusers_opens_the_checkpoint_without_a_word(
    few_step_checkpoint: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    for checkpoint in (tiny_checkpoint, few_step_checkpoint):
        pipeline = AnimateDiffPipeline.from_pretrained(checkpoint)
        said.append("few_step" in capfd.readouterr().err)
    assert said == [False, False]
    assert not hasattr(pipeline, "unet_few_step")
    expected = load_unet(tiny_checkpoint / "unet").half().state_dict()
    found = pipeline.unet.half().state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_second_denoiser_can_be_left_out(
    few_step_checkpoint: Path, open_parts: OpenModel
) -> None:
    opened, family = open_parts(few_step_checkpoint, no_few_step=True)
    assert list(family.component_makers) == ["text_encoder", "unet", "vae_decoder"]
    planned, defaults = plan_schedules(opened, family)
    assert list(planned) == ["ddim"]
    assert (defaults.scheduler, defaults.num_inference_steps) == ("ddim", 25)


def test_denoisers_that_take_other_inputs_are_refused(few_step_bundle: Path) -> None:
    components = read_manifest(few_step_bundle).components
    check_same_inputs(components)
    second = components["unet_few_step"]
    more = {**second.inputs, "frame_rate": TensorRecord("float32", ("batch",), "frame_rate")}
    outputs = {"out_sample": TensorRecord("float32", ("batch", 8))}
    for other in (replace(second, inputs=more), replace(second, outputs=outputs)):
        with pytest.raises(ExportError, match="takes or returns other tensors than unet"):
            check_same_inputs({**components, "unet_few_step": other})
