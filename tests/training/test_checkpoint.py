"""What the training saves is a checkpoint that diffusers and the export open."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNetMotionModel
from safetensors.torch import load_file

from mutoscope.export.opening import open_model
from mutoscope.export.schedule_plan import plan_schedules
from mutoscope.export.scheduler_tables import name_scheduler
from training import checkpoint as checkpoint_module
from training.checkpoint import (
    DEFAULTS_NAME,
    FEW_STEP_FOLDER,
    save_checkpoint,
    save_few_step,
    unpack_checkpoint,
)
from training.few_step import REUSED_STEPS
from training.latents import SCALE_NAME
from training.unet import FEW_STEP_STATE_NAME, make_unet

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "moving-shapes"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def weights():
    """Random weights of the few-step denoiser, float32."""
    torch.manual_seed(3)
    return make_unet().state_dict()


@pytest.fixture
def state_dir(tmp_path, weights):
    """A folder with the state of a few-step denoiser, as the training saves it."""
    folder = tmp_path / "state"
    folder.mkdir()
    torch.save({"average": weights}, folder / FEW_STEP_STATE_NAME)
    return folder


@pytest.fixture
def saved(tmp_path):
    """A copy of the shipped checkpoint without its few-step denoiser."""
    folder = tmp_path / "moving-shapes"
    for source in SHIPPED.rglob("*"):
        place = source.relative_to(SHIPPED)
        if source.is_file() and place.parts[0] != FEW_STEP_FOLDER:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(source.read_bytes())
    defaults = json.loads((folder / DEFAULTS_NAME).read_text())
    defaults.pop("few_step", None)
    (folder / DEFAULTS_NAME).write_text(json.dumps(defaults))
    return folder


def read_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_few_step(folder, weights):
    found = load_file(folder / FEW_STEP_FOLDER / WEIGHTS_NAME)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value.half()) for name, value in weights.items())
    unet = UNetMotionModel.from_pretrained(folder / FEW_STEP_FOLDER)
    assert unet.config.block_out_channels == [64, 128]


def test_adding_the_few_step_denoiser_leaves_all_other_weights(state_dir, saved, weights):
    before = read_files(saved)
    size = save_few_step(state_dir, saved)
    after = read_files(saved)
    added = {f"{FEW_STEP_FOLDER}/config.json", f"{FEW_STEP_FOLDER}/{WEIGHTS_NAME}"}
    assert after.keys() - before.keys() == added
    assert {name for name in before if before[name] != after[name]} == {DEFAULTS_NAME}
    assert size == sum(map(len, after.values()))
    check_few_step(saved, weights)
    stated, earlier = (json.loads(files[DEFAULTS_NAME]) for files in (after, before))
    assert stated == {**earlier, "few_step": checkpoint_module.FEW_STEP_DEFAULTS}


def test_a_few_step_denoiser_that_is_there_is_replaced(state_dir, saved, weights):
    save_few_step(state_dir, saved)
    (saved / FEW_STEP_FOLDER / "left_over").write_text("of another")
    others = {name: value + 1 for name, value in weights.items()}
    torch.save({"average": others}, state_dir / FEW_STEP_STATE_NAME)
    save_few_step(state_dir, saved)
    check_few_step(saved, others)
    assert not (saved / FEW_STEP_FOLDER / "left_over").exists()


def test_the_export_reads_what_was_saved(state_dir, saved, tmp_path):
    save_few_step(state_dir, saved)
    with open_model(saved, tmp_path) as (checkpoint, family):
        assert "unet_few_step" in family.component_makers
        planned, defaults = plan_schedules(checkpoint, family)
    stated = checkpoint_module.FEW_STEP_DEFAULTS
    assert planned["few-step"].step_counts == tuple(stated["num_inference_steps"])
    assert name_scheduler(type(planned["few-step"].scheduler).__name__) == stated["scheduler"]
    default = stated["default_num_inference_steps"]
    assert (defaults.scheduler, defaults.num_inference_steps) == ("few-step-reuse", default)
    assert planned["few-step-reuse"].step_counts == (default,)
    assert planned["few-step-reuse"].reused_rows == tuple(stated["reused_rows"])
    assert set(stated["reused_rows"]) <= set(REUSED_STEPS)


def test_saving_all_has_the_few_step_denoiser_where_one_was_trained(
    state_dir, saved, weights, tmp_path
):
    unpack_checkpoint(saved, state_dir)
    output = tmp_path / "new"
    save_checkpoint(state_dir, output)
    check_few_step(output, weights)
    found, shipped = read_files(output), read_files(saved)
    assert found[f"unet/{WEIGHTS_NAME}"] == shipped[f"unet/{WEIGHTS_NAME}"]
    assert "few_step" in json.loads(found[DEFAULTS_NAME])
    (state_dir / FEW_STEP_STATE_NAME).unlink()
    save_checkpoint(state_dir, output)
    assert not (output / FEW_STEP_FOLDER).exists()
    assert "few_step" not in json.loads((output / DEFAULTS_NAME).read_text())


def test_what_was_unpacked_is_saved_as_it_was(tmp_path):
    state_dir, output = tmp_path / "state", tmp_path / "saved"
    state_dir.mkdir()
    states = unpack_checkpoint(SHIPPED, state_dir)
    assert {path.name for path in state_dir.iterdir()} == {*states, SCALE_NAME}
    save_checkpoint(state_dir, output)
    found, shipped = read_files(output), read_files(SHIPPED)
    for name in (name for name in shipped if name.endswith((".safetensors", ".json"))):
        assert found[name] == shipped[name], name


def test_states_that_are_there_are_not_unpacked_over(state_dir):
    before = read_files(state_dir)
    with pytest.raises(ValueError, match=f"has {FEW_STEP_STATE_NAME}: name another --state-dir"):
        unpack_checkpoint(SHIPPED, state_dir)
    assert read_files(state_dir) == before


def test_only_a_saved_checkpoint_is_unpacked(tmp_path):
    with pytest.raises(ValueError, match=f"nowhere has no {DEFAULTS_NAME}"):
        unpack_checkpoint(tmp_path / "nowhere", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_grew_too_large_stays_as_it_was(state_dir, saved, monkeypatch):
    before = read_files(saved)
    monkeypatch.setattr(checkpoint_module, "SIZE_LIMIT_BYTES", 20_000_000)
    with pytest.raises(ValueError, match="the limit is 20000000: narrow it"):
        save_few_step(state_dir, saved)
    assert read_files(saved) == before


def test_weights_that_float16_does_not_hold_are_refused(state_dir, saved, weights):
    before = read_files(saved)
    wide = {**weights, "conv_out.bias": weights["conv_out.bias"] + 1e6}
    torch.save({"average": wide}, state_dir / FEW_STEP_STATE_NAME)
    with pytest.raises(ValueError, match=r"unet_few_step conv_out.bias is not finite in float16"):
        save_few_step(state_dir, saved)
    assert read_files(saved) == before
