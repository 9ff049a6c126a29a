"""A second denoiser of few steps: its component, its tables, the defaults of its bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, LCMScheduler, UNetMotionModel

from mutoscope.export import ExportError, ExportParityError, export_checkpoint
from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.few_step import check_same_inputs
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.provenance import make_provenance
from mutoscope.export.schedule import trace_schedule
from mutoscope.export.schedule_plan import plan_schedules
from mutoscope.export.verification import compare_with_checkpoint
from mutoscope.runtime import VideoPipeline
from mutoscope.runtime.errors import MutoscopeError, ParameterError
from mutoscope.runtime.manifest import Manifest, TensorRecord
from mutoscope.runtime.schedule import ScheduleTable
from tests.conftest import Layouts, MakeOnce, RunCommand
from tests.export.component_parity import TOLERANCE, run_graph
from tests.few_step_checkpoints import FEW_STEP, save_few_step
from tests.lora_layouts import make_matrices, name_kohya, name_peft, shapes_of, write_lora

DEFAULTS_NAME = "mutoscope_defaults.json"
# Both sides add the same two float32 products to weights of about 1; the order may differ.
WEIGHT_TOLERANCE = 2.5e-7
# Float32 in another order of additions moves a few values across the middle between two levels.
MAX_DIFFERENCE = 2
STEPS = (1, 2, 4)
OpenModel = Callable[..., tuple[Checkpoint, FamilyExport]]


@pytest.fixture(scope="session")
def few_step_checkpoint(tiny_checkpoint: Path, make_once: MakeOnce) -> Path:
    """`tiny_checkpoint` with other random weights for a second denoiser."""
    return make_once("few-step", lambda folder: save_few_step(tiny_checkpoint, folder / "tiny"))


@pytest.fixture(scope="session")
def few_step_bundle(few_step_checkpoint: Path, make_once: MakeOnce) -> Path:
    """A bundle of `few_step_checkpoint` with DDIM tables for 3 and 8 steps."""
    return make_once(
        "bundle-few-step",
        lambda folder: (
            export_checkpoint(
                few_step_checkpoint, folder / "few-step", num_inference_steps=(3, 8)
            ).bundle
        ),
    )


@pytest.fixture
def open_parts(tmp_path: Path, request: pytest.FixtureRequest) -> OpenModel:
    """A function that opens a checkpoint with options until the end of the test."""

    def open_it(checkpoint: Path, **options: Any) -> tuple[Checkpoint, FamilyExport]:
        opened: AbstractContextManager[Any] = open_model(
            checkpoint, tmp_path, **CheckpointOptions(**options)
        )
        parts: tuple[Checkpoint, FamilyExport] = opened.__enter__()
        request.addfinalizer(lambda: opened.__exit__(None, None, None))
        return parts

    return open_it


@pytest.fixture
def unet_lora(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA for the denoiser of `tiny_checkpoint`."""
    matrices = make_matrices({"unet": load_unet(tiny_checkpoint / "unet")})
    return write_lora(tmp_path / "few-step.safetensors", name_peft(matrices))


def load_unet(folder: Path) -> Any:
    with quiet_libraries():
        return UNetMotionModel.from_pretrained(folder)


def read_manifest(bundle: Path) -> Manifest:
    return Manifest.load(bundle / "manifest.json")


def test_the_second_denoiser_is_a_component_after_the_first(few_step_bundle: Path) -> None:
    manifest = read_manifest(few_step_bundle)
    names = list(manifest.components)
    assert names == ["text_encoder", "unet", "unet_reuse", "unet_few_step", "vae_decoder"]
    first, second = manifest.components["unet"], manifest.components["unet_few_step"]
    assert second.inputs == first.inputs
    assert list(second.outputs) == ["out_sample"]
    assert second.weights_of is None
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
        "ddim": ["3", "8"],
        "few-step": ["1", "2", "4"],
    }
    own = DDIMScheduler.from_pretrained(few_step_checkpoint, subfolder="scheduler")
    lcm = LCMScheduler.from_config(own.config)
    assert lcm.config.prediction_type == "v_prediction"
    for steps in STEPS:
        table = ScheduleTable.load(few_step_bundle / schedules["few-step"][str(steps)])
        assert (table.denoiser, table.scheduler) == ("unet_few_step", "LCMScheduler")
        assert not any(row.guidance for row in table.rows)
        expected = trace_schedule(lcm, steps)
        assert tuple(replace(row, guidance=True) for row in table.rows) == expected.rows
    table = ScheduleTable.load(few_step_bundle / schedules["ddim"]["8"])
    assert table.denoiser is None
    assert all(row.guidance for row in table.rows)


def test_the_default_is_to_sample_with_it(few_step_bundle: Path) -> None:
    defaults = read_manifest(few_step_bundle).defaults
    assert (defaults.scheduler, defaults.num_inference_steps) == ("few-step", 4)
    assert defaults.guidance_scale == 7.5  # of the first denoiser


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_a_clip_is_that_of_diffusers_with_its_weights_and_no_guidance(
    few_step_checkpoint: Path, few_step_bundle: Path
) -> None:
    reference = AnimateDiffPipeline.from_pretrained(
        few_step_checkpoint,
        unet=load_unet(few_step_checkpoint / "unet_few_step"),
        dtype=torch.float32,
    )
    reference.scheduler = LCMScheduler.from_config(reference.scheduler.config)
    reference.set_progress_bar_config(disable=True)
    size = {"num_frames": 3, "height": 16, "width": 24}
    prompt, seed = "a red circle moves left", 5
    with VideoPipeline.open(few_step_bundle) as pipeline:
        found = pipeline.generate(prompt, seed=seed, **size).frames.astype(np.int64)
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


def test_denoisers_that_take_other_inputs_are_refused(few_step_bundle: Path) -> None:
    components = read_manifest(few_step_bundle).components
    check_same_inputs(components)
    second = components["unet_few_step"]
    more = {**second.inputs, "frame_rate": TensorRecord("float32", ("batch",), "frame_rate")}
    outputs = {"out_sample": TensorRecord("float32", ("batch", 8))}
    for other in (replace(second, inputs=more), replace(second, outputs=outputs)):
        with pytest.raises(ExportError, match="takes or returns other tensors than unet"):
            check_same_inputs({**components, "unet_few_step": other})


def test_the_command_refuses_step_counts_of_a_lora_where_graphs_are_added(
    run_command: RunCommand, tmp_path: Path
) -> None:
    arguments = ("export", tmp_path, "-o", tmp_path / "bundle", "--dtype=float16", "--add")
    result = run_command(*arguments, "--few-step-counts=4", "--few-step-scheduler=lcm")
    assert result.exit_code == 2
    assert "leave out --few-step-scheduler, --few-step-counts" in result.stderr
