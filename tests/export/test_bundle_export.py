"""The bundles of the tiny checkpoints: what is in them, and that nothing else is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from mutoscope.export import ExportError, ExportProgress, component_export, export_checkpoint
from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.families.animatediff import open_family
from mutoscope.export.schedule_plan import fit_default_steps
from mutoscope.runtime.errors import MutoscopeError, OutputError, ParameterError, ScheduleError
from mutoscope.runtime.manifest import DefaultsRecord, Manifest
from mutoscope.runtime.schedule import ScheduleTable
from tests.conftest import CommandResult, RunCommand

# Nodes and small constants; the weights of this decoder are 97 kB.
MAXIMUM_TILE_GRAPH_BYTES = 40_000
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
# With what is cut out of one of them, which has no folder of its own.
ALL_COMPONENTS = ("text_encoder", "unet", "unet_reuse", "vae_decoder")
GRAPHS = (*(f"{name}/model.onnx" for name in COMPONENTS), "unet/model_reuse.onnx")


def test_export_prints_one_json_object(tiny_export: tuple[Path, CommandResult]) -> None:
    _, result = tiny_export
    report = json.loads(result.stdout)
    assert list(report["components"]) == list(ALL_COMPONENTS)
    assert report["schedulers"] == {"ddim": list(range(1, 51))}
    assert report["components"]["unet"]["parity"][0]["psnr_db"] > 100


def test_export_writes_its_progress_and_no_library_noise(
    tiny_export: tuple[Path, CommandResult],
) -> None:
    _, result = tiny_export
    lines = result.stderr.splitlines()
    assert lines[0] == "loading torch and diffusers"
    assert [line.split()[1] for line in lines[1:]] == [
        "tokenizer",
        "schedules",
        *ALL_COMPONENTS,
        "manifest.json",
    ]


def test_manifest_lists_every_file_with_its_digest(tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle / "manifest.json")
    files = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*.*")}
    assert set(manifest.files) == files - {"manifest.json"}
    for name, record in manifest.files.items():
        content = (tiny_bundle / name).read_bytes()
        assert record.size_bytes == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_manifest_states_limits_and_defaults_of_the_checkpoint(
    tiny_bundle: Path, other_bundle: Path
) -> None:
    tiny, other = (Manifest.load(path / "manifest.json") for path in (tiny_bundle, other_bundle))
    assert (tiny.limits.height.multiple, other.limits.width.multiple) == (4, 16)
    assert (tiny.limits.num_frames.maximum, other.limits.num_frames.maximum) == (32, 12)
    assert (tiny.defaults.num_frames, other.defaults.num_frames) == (16, 12)
    assert (tiny.defaults.height, other.defaults.height) == (16, 32)
    assert other.defaults.scheduler == "euler"
    assert (tiny.latents.channels, other.latents.channels) == (4, 3)
    assert other.tokenizers["input_ids"].pad_token_id != tiny.tokenizers["input_ids"].pad_token_id
    assert (other.name, tiny.name) == ("other", "tiny")


@pytest.mark.parametrize(("counts", "expected"), [((1, 4, 8), 8), ((20, 30), 20), ((25, 50), 25)])
def test_the_default_number_of_steps_is_one_that_the_bundle_has(
    counts: tuple[int, ...], expected: int
) -> None:
    defaults = DefaultsRecord("ddim", 25, 7.5, 64, 64, 16, 8.0)
    assert fit_default_steps(defaults, counts).num_inference_steps == expected


def test_provenance_has_versions_and_the_scheduler_configuration(tiny_bundle: Path) -> None:
    provenance = Manifest.load(tiny_bundle / "manifest.json").provenance
    assert provenance["onnx"] == onnx.__version__
    assert provenance["scheduler_config"]["prediction_type"] == "v_prediction"
    assert provenance["component_classes"]["unet"] == "UNetMotionModel"
    assert not [key for key in provenance["scheduler_config"] if key.startswith("_")]


def test_schedules_of_other_schedulers_are_made_by_name(other_bundle: Path) -> None:
    manifest = Manifest.load(other_bundle / "manifest.json")
    assert set(manifest.schedules) == {
        "euler",
        "ddim",
        "euler-ancestral",
        "unipc",
    }
    tables = manifest.schedules["euler-ancestral"]
    assert tables["8"] == "schedules/euler-ancestral_8.json"
    table = ScheduleTable.load(other_bundle / tables["8"])
    assert table.num_inference_steps == 8
    assert table.draws_noise


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_hold_no_paths_and_no_stack_traces(
    graph: str, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    content = (tiny_bundle / graph).read_bytes()
    places = {
        str(Path.home()),
        str(Path.cwd()),
        str(tiny_checkpoint.parent),
        sys.prefix,
        sysconfig.get_paths()["stdlib"],
        "site-packages",
        ".py",
        "forward(",
        "stack_trace",
    }
    for place in places:
        assert place.encode() not in content


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_pass_the_checker_and_are_plain_onnx(graph: str, tiny_bundle: Path) -> None:
    path = tiny_bundle / graph
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version <= 10  # what onnxruntime 1.20 and TensorRT 10.3 read
    assert not model.graph.value_info
    assert not model.functions


@pytest.mark.parametrize("component", COMPONENTS)
def test_weights_lie_once_in_one_data_file(component: str, tiny_bundle: Path) -> None:
    folder = tiny_bundle / component
    # The graphs for processors, for reused features and for tiles read the same weights.
    names = {path.name for path in folder.iterdir()}
    tiles = {name for name in names if name.startswith("model_tiles_")}
    graphs = {"model.onnx", "model.onnx.data"}
    if component != "text_encoder":
        graphs.add("model_cpu.onnx")
    if component == "unet":
        graphs |= {"model_reuse.onnx", "model_cpu_reuse.onnx"}
    assert names - tiles == graphs
    assert bool(tiles) == (component == "vae_decoder")
    assert all((folder / name).stat().st_size < MAXIMUM_TILE_GRAPH_BYTES for name in tiles)
    model = onnx.load(str(folder / "model.onnx"))
    contents = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    large = [content.tobytes() for content in contents if content.nbytes >= 1024]
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("component", ALL_COMPONENTS)
def test_graph_axes_are_named_as_in_the_manifest(component: str, other_bundle: Path) -> None:
    record = Manifest.load(other_bundle / "manifest.json").components[component]
    session = onnxruntime.InferenceSession(str(other_bundle / record.variants["float32"]))
    for values, records in (
        (session.get_inputs(), record.inputs),
        (session.get_outputs(), record.outputs),
    ):
        assert {value.name: tuple(value.shape) for value in values} == {
            name: tensor.shape for name, tensor in records.items()
        }


def test_a_failing_export_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyboardInterrupt(), ExportError("the exporter failed")):
        monkeypatch.setattr(component_export, "make_graph", _raise(error))
        with pytest.raises(type(error)):
            export_checkpoint(tiny_checkpoint, tmp_path / "bundle", num_inference_steps=[1])
        assert not list(tmp_path.iterdir())


def test_a_failing_export_keeps_the_old_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").write_text("{}")
    monkeypatch.setattr(component_export, "make_graph", _raise(ExportError("the exporter failed")))
    with pytest.raises(ExportError, match="the exporter failed"):
        export_checkpoint(tiny_checkpoint, output, num_inference_steps=[1], force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "manifest.json"]


def test_a_full_disk_is_one_clear_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(component_export, "make_graph", _raise(error))
    with pytest.raises(OutputError, match=r"bundle cannot be written: the disk is full"):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", num_inference_steps=[1])
    assert not list(tmp_path.iterdir())


def test_progress_names_each_step_at_its_start_and_end(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExportProgress] = []
    monkeypatch.setattr(component_export, "make_graph", _raise(ExportError("far enough")))
    with pytest.raises(ExportError):
        export_checkpoint(
            tiny_checkpoint, tmp_path / "bundle", num_inference_steps=[1], on_progress=seen.append
        )
    assert [(step.step, step.name, step.seconds is None) for step in seen] == [
        (1, "tokenizer", True),
        (1, "tokenizer", False),
        (2, "schedules", True),
        (2, "schedules", False),
        (3, "text_encoder", True),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedulers": ["magic"]}, ParameterError, "scheduler 'magic' is unknown"),
        ({"schedulers": ["torch"]}, ParameterError, "scheduler 'torch' is unknown"),
        (
            {"schedulers": ["FlowMatchEulerDiscreteScheduler"]},
            ParameterError,
            "does not fit a checkpoint with DDIMScheduler",
        ),
        (
            {"schedulers": ["heun"]},
            ParameterError,
            "HeunDiscreteScheduler has no setting rescale_betas_zero_snr, which is True",
        ),
        ({"num_inference_steps": []}, ParameterError, "num_inference_steps is empty"),
        ({"num_inference_steps": [0]}, ParameterError, "num_inference_steps is 0"),
        ({"num_inference_steps": [5, 1001]}, ParameterError, "num_inference_steps is 1001"),
        ({"weights": "int4"}, ParameterError, "weights is 'int4': use one of float32, float16"),
        ({"dtype": "bfloat16"}, ParameterError, "dtype is 'bfloat16': use one of float32, float16"),
        (
            {"dtype": "float16", "weights": "float32"},
            ParameterError,
            "weights is 'float32' with dtype 'float16', whose graphs have float16 weights: leave",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, Any],
    error: type[MutoscopeError],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_clips_is_refused(
    other_checkpoint: Path, tmp_path: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = edit_checkpoint(
        other_checkpoint,
        "scheduler/scheduler_config.json",
        {"_class_name": "DDIMScheduler", "clip_sample": True},
    )
    with pytest.raises(ScheduleError, match="DDIMScheduler"):
        export_checkpoint(checkpoint, tmp_path / "bundle", num_inference_steps=[4])
    assert not (tmp_path / "bundle").exists()


def test_the_command_fails_in_one_line(run_command: RunCommand, tmp_path: Path) -> None:
    result = run_command("export", tmp_path / "absent", "-o", tmp_path / "bundle")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        f"error: {tmp_path / 'absent'} does not exist: give the folder of a checkpoint, or a hub id"
    ]
    assert result.stdout == ""


@pytest.mark.parametrize("counts", ["", "1,,2", "4-", "x", "-3", "1.5", "1-99999999"])
def test_the_command_takes_counts_and_ranges_only(
    counts: str, run_command: RunCommand, tmp_path: Path
) -> None:
    result = run_command("export", tmp_path, "-o", "bundle", f"--num-inference-steps={counts}")
    assert result.exit_code == 2
    assert "use 1,2,4-8" in result.stderr


def test_the_help_of_the_command_has_examples(run_command: RunCommand) -> None:
    result = run_command("export", "--help")
    assert result.exit_code == 0
    assert "mutoscope export checkpoint -o bundle" in result.stdout


def test_a_checkpoint_may_state_its_own_defaults(
    tiny_checkpoint: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    stated = {"guidance_scale": 3, "frame_rate": 12.5, "num_inference_steps": 8}
    checkpoint = edit_checkpoint(tiny_checkpoint, "mutoscope_defaults.json", stated)
    defaults = open_family(open_checkpoint(checkpoint)).defaults
    assert (defaults.guidance_scale, defaults.frame_rate) == (3.0, 12.5)
    assert (defaults.num_inference_steps, defaults.height) == (8, 16)
    for wrong, message in (
        ({"steps": 8}, "has 'steps', which is not a default: use some of num_inference_steps"),
        ({"scheduler": "DDIMScheduler"}, "has 'scheduler', which is not a default"),
        ({"height": "large"}, "height must be a whole number"),
    ):
        checkpoint = edit_checkpoint(tiny_checkpoint, "mutoscope_defaults.json", wrong)
        with pytest.raises(ExportError, match=message):
            open_family(open_checkpoint(checkpoint))


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail
