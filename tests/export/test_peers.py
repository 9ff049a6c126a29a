"""The torch side of `mutoscope bench`: any component of any family, as its checkpoint has it."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.engines.engine import Tensors
from mutoscope.engines.options import EngineOptions
from mutoscope.export import peers
from mutoscope.export.errors import CheckpointError, ExportParityError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.peers import TorchModel, make_opener
from mutoscope.runtime.benchmarks.measuring import compute_error
from mutoscope.runtime.benchmarks.worker import BundleModel
from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH, Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.manifest import TensorRecord
from mutoscope.runtime.settings import make_settings
from tests.conftest import RunCommand

CHECKPOINT = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "moving-shapes"
# Rounding of float32 in another order.
RELATIVE_ERROR = 1e-5
# A rounded pixel may fall to the other side: 1 of 255 in one of a thousand.
FRAMES_ERROR = 1e-3
# bfloat16 has 8 bits; through the depth of a small model a few of them are lost.
BFLOAT16_ERRORS = (1e-4, 5e-2)


def make_settings_of_peer(bundle: Path, checkpoint: Path, component: str) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "checkpoint": str(checkpoint),
        "options": {},
        "component": component,
        "dtype": "float32",
        "compiled": False,
        "num_threads": None,
    }


def make_small_inputs(bundle: Bundle) -> dict[str, Tensors]:
    limits = bundle.manifest.limits
    settings = make_settings(
        bundle, seed=0, num_frames=2, height=limits.height.minimum, width=limits.width.minimum
    )
    return make_inputs(bundle, settings, num_threads=1)


@pytest.fixture(scope="module")
def default_inputs() -> dict[str, Tensors]:
    return make_small_inputs(Bundle.default())


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder"])
def test_a_component_equals_the_bundle_in_onnxruntime(
    name: str, default_inputs: dict[str, Tensors]
) -> None:
    feeds = default_inputs[name]
    peer = TorchModel(make_settings_of_peer(DEFAULT_BUNDLE_PATH, CHECKPOINT, name))
    options = EngineOptions(num_threads=1)
    own = BundleModel(Bundle.default(), name, options, feeds, is_plain=True)
    error = compute_error(own.run(feeds), peer.run(feeds))
    assert error < (FRAMES_ERROR if "decoder" in name else RELATIVE_ERROR)
    peer.close()
    own.close()


def test_several_outputs_come_back_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves(torch.nn.Module):
        def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return sample[:, 0], sample[:, 1]

    inputs = {"sample": TensorRecord("float32", ("batch", 2), "latents")}
    outputs = {name: TensorRecord("float32", ("batch",)) for name in ("first", "second")}
    component = ComponentExport("text_encoder", Halves(), inputs, outputs, {}, ())
    family = SimpleNamespace(component_makers={"text_encoder": lambda: component})
    monkeypatch.setattr(peers, "open_model", lambda *_, **__: nullcontext((None, family)))
    monkeypatch.setattr(peers, "_check_same", lambda *_: None)
    model = TorchModel(make_settings_of_peer(DEFAULT_BUNDLE_PATH, tmp_path, "text_encoder"))
    results = model.run({"sample": np.array([[1, 2]], np.float32)})
    assert {name: array.tolist() for name, array in results.items()} == {
        "first": [1.0],
        "second": [2.0],
    }


def test_bfloat16_is_near_float32_and_not_the_same(default_inputs: dict[str, Tensors]) -> None:
    settings = make_settings_of_peer(DEFAULT_BUNDLE_PATH, CHECKPOINT, "unet")
    feeds = default_inputs["unet"]
    exact = TorchModel(settings).run(feeds)
    near = TorchModel({**settings, "dtype": "bfloat16"})
    low, high = BFLOAT16_ERRORS
    assert low < compute_error(near.run(feeds), exact) < high
    assert near.properties["precision"] == "bfloat16"


def test_torch_compile_gets_the_module_as_it_is(
    default_inputs: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    settings = make_settings_of_peer(DEFAULT_BUNDLE_PATH, CHECKPOINT, "text_encoder")
    model = TorchModel({**settings, "compiled": True})
    (outputs,) = model.run(default_inputs["text_encoder"]).values()
    assert np.isfinite(outputs).all()
    assert model.properties["engine"] == "torch.compile"
    assert [type(module).__name__ for module in compiled] == ["TextEncoder"]


def test_the_number_of_threads_is_kept(
    default_inputs: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    settings = make_settings_of_peer(DEFAULT_BUNDLE_PATH, CHECKPOINT, "text_encoder")
    model = make_opener({**settings, "num_threads": 3})(default_inputs["text_encoder"])
    assert asked == [3]
    model.close()


def test_a_bundle_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    manifest = json.loads((DEFAULT_BUNDLE_PATH / "manifest.json").read_text())
    manifest["components"]["unet"]["inputs"]["timestep"]["shape"] = [2]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    settings = make_settings_of_peer(tmp_path, CHECKPOINT, "unet")
    with pytest.raises(ExportParityError, match="unet takes or returns other shapes"):
        TorchModel(settings)
    with pytest.raises(
        ExportParityError, match="gives text_encoder, unet, unet_few_step, vae_decoder, no trans"
    ):
        TorchModel({**settings, "component": "transformer"})
    with pytest.raises(CheckpointError):
        TorchModel({**settings, "checkpoint": str(tmp_path)})


def test_the_command_runs_the_checkpoint_in_turn_with_the_bundle(run_command: RunCommand) -> None:
    arguments = ("--against", "diffusers", "--checkpoint", CHECKPOINT, "--component")
    done = run_command(
        "bench", *arguments, "text_encoder", "--count", "1", "--warm-ups", "1", "--json"
    )
    assert done.exit_code == 0, done.stderr
    peer, own = json.loads(done.stdout)["rows"]
    assert peer["contestant"] == "diffusers"
    assert peer["properties"]["engine"] == "torch"
    assert "relative_l2_error" not in peer
    assert own["relative_l2_error"] < RELATIVE_ERROR
    speed = peer["seconds_run"]["median"] / own["seconds_run"]["median"]
    assert math.isclose(own["ratio"], speed)
