import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from mutoscope.runtime import __version__, main
from mutoscope.runtime.errors import MissingExtraError
from tests.runtime.conftest import RunCli

PROMPT = "a red circle moves left"
LEAN_COMMANDS = sorted(set(main.COMMANDS) - {"export"})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: object) -> int:
    """Run the command line in this process."""
    return main.run([str(argument) for argument in arguments])


def test_help_lists_all_commands_without_importing_them() -> None:
    code = (
        "import sys; from mutoscope.runtime import main; code = main.run(['--help'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tokenizers', 'av', 'mutoscope.export'}\n"
        "assert code == 0 and not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in main.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"mutoscope {__version__}\n"


def test_no_command_shows_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "Usage: mutoscope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["generate", PROMPT, "--colour"], "No such option"),
        (["generate", PROMPT, "--seed", "x"], "'x' is not a valid integer"),
        (["generate", PROMPT, "--num-videos", "0"], "0 is not in the range x>=1"),
        (["verify", "--motion-adapter", "x"], "--motion-adapter needs --checkpoint"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_every_option_and_command_has_help() -> None:
    context = click.Context(main.group)
    for name in LEAN_COMMANDS:
        command = main.group.get_command(context, name)
        assert command is not None
        assert command.help
        assert f"mutoscope {name}" in (command.epilog or "")
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_the_line_in_the_groups_help_is_what_the_command_says() -> None:
    context = click.Context(main.group)
    for name in LEAN_COMMANDS:
        command = main.group.get_command(context, name)
        assert command is not None
        assert command.help is not None
        first = command.help.partition("\n\n")[0]
        assert main.COMMANDS[name][1] in (first, first.replace("from PROMPT", "from a prompt"))


def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(main, "COMMANDS", {"export": ("tests.runtime.needs_torch:command", "")})
    assert run("export", "x") == 1
    assert capsys.readouterr().err == (
        "error: this command needs torch, which is not installed: pip install 'mutoscope[export]'\n"
    )


def test_an_unknown_missing_module_is_not_taken_for_an_extra() -> None:
    error = ModuleNotFoundError("No module named 'nothing'", name="nothing")
    with pytest.raises(ModuleNotFoundError):
        main.make_missing_extra_error(error)
    error = ModuleNotFoundError("No module named 'torch.x'", name="torch.x")
    assert isinstance(main.make_missing_extra_error(error), MissingExtraError)


def test_generate_names_its_output_after_the_prompt(
    bundle_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", PROMPT, "--bundle", bundle_path, "--seed", 7) == 0
    assert os.listdir(here) == ["a-red-circle-moves-left.mp4"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("a-red-circle-moves-left.mp4: seed 7, ")


def test_generate_makes_an_image_of_one_frame(bundle_path: Path, here: Path) -> None:
    assert run("generate", "Círcle, réd!", "--bundle", bundle_path, "--num-frames", 1) == 0
    assert os.listdir(here) == ["círcle-réd.png"]


def test_generate_prints_one_json_object(run_cli: RunCli, bundle_path: Path) -> None:
    done = run_cli("generate", PROMPT, "--bundle", bundle_path, "-o", "x.npy", "--json")
    result = json.loads(done.stdout)
    (video,) = result["videos"]
    assert video["path"] == "x.npy"
    assert video["prompt"] == PROMPT
    assert 0 <= video["seed"] < 2**32
    assert video["num_inference_steps"] == 4
    assert video["seconds_total"] > 0


def test_generate_is_the_pipeline(bundle_path: Path, here: Path) -> None:
    from mutoscope.runtime import VideoPipeline

    options = "--seed 9 --num-inference-steps 3 --guidance-scale 2 --num-frames 4 --height 16"
    more = ["--width", "64", "--scheduler", "euler-ancestral", "--negative-prompt", "blue"]
    threads = ["--num-threads", "1", "--execution-provider", "cpu", "--memory", "low"]
    arguments = [*options.split(), *more, *threads, "-o", "x.npy"]
    assert run("generate", PROMPT, "--bundle", bundle_path, *arguments) == 0
    with VideoPipeline.open(bundle_path) as pipeline:
        video = pipeline.generate(
            PROMPT,
            seed=9,
            num_inference_steps=3,
            guidance_scale=2,
            num_frames=4,
            height=16,
            width=64,
            scheduler="euler-ancestral",
            negative_prompt="blue",
        )
    np.testing.assert_array_equal(np.load("x.npy"), video.frames)


@pytest.mark.parametrize("name", ["x.webp", "x", "x/"])
def test_several_videos_are_numbered_and_take_seeds_in_turn(
    bundle_path: Path, here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ["--num-videos", 3, "--seed", 5, "-o", name, "--json"]
    assert run("generate", PROMPT, "--bundle", bundle_path, *arguments) == 0
    ending = ".webp" if name == "x.webp" else ""
    assert sorted(os.listdir(here)) == [f"x-{number}{ending}" for number in (1, 2, 3)]
    videos = json.loads(capsys.readouterr().out)["videos"]
    assert [video["seed"] for video in videos] == [5, 6, 7]


BAD_INPUT = [
    (["--height", 40], "height is 40; this bundle needs 16k: use 32 or 48"),
    (["--width", 4000], "width is 4000; this bundle allows at most 256: use 256"),
    (["--scheduler", "foo"], "scheduler 'foo' is not in this bundle: use ddim, euler-ancestral"),
    (["--num-inference-steps", 60], "num_inference_steps is 60; this bundle has tables of ddim "),
    (["--guidance-scale", 0], "guidance_scale is 0; it must be at least 1: use 1 for no guidance"),
    (["--execution-provider", "cuda"], "execution provider 'cuda' is not in this onnxruntime bu"),
    (["--seed", -4], "seed is -4; it must be from 0"),
    (["--seed", 2**64 - 1, "--num-videos", 2], "2 videos need it to be at most 184467440737095"),
    (["-o", "x.avi"], "x.avi has an unknown ending: use .mp4"),
    (["-o", "x.avi", "--num-videos", 2], "x.avi has an unknown ending: use .mp4"),
    (["-o", "x.png"], "x.png holds one image and the clip has 6 frames: use .apng, or x/"),
    (["-o", "no/x.mp4"], "no/x.mp4 cannot be written: there is no folder no: make it"),
    (["-o", "taken.mp4"], "taken.mp4 exists: use --force (force=True) or another name"),
    (["--bundle", "nowhere"], "nowhere does not exist: give the folder of a bundle"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_1_before_any_work(
    bundle_path: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    (here / "taken.mp4").write_bytes(b"taken")
    assert run("generate", PROMPT, "--bundle", bundle_path, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert os.listdir(here) == ["taken.mp4"]
    assert (here / "taken.mp4").read_bytes() == b"taken"


def test_a_prompt_that_is_too_long_is_one_line_and_exit_code_1(
    bundle_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a red circle\n" * 5, "--bundle", bundle_path, "-o", "x.mp4") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "prompt has 17 tokens" in error
    assert os.listdir(here) == []


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_generating_leaves_nothing(
    bundle_path: Path, tmp_path: Path, number: int, code: int
) -> None:
    # It saves again and again, so that the signal finds it at any point of the work.
    program = "from mutoscope.runtime.main import main; main()"
    arguments = ["generate", PROMPT, "--bundle", str(bundle_path), "-o", "x.mp4"]
    folder = tmp_path / "killed"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--num-videos", "3000"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a shell runs in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(0.3)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [name for name in os.listdir(folder) if not name.endswith(".mp4")] == []


def test_a_reader_that_goes_away_is_no_error(bundle_path: Path) -> None:
    program = "from mutoscope.runtime.main import main; main()"
    command = f'"{sys.executable}" -c "{program}" inspect "{bundle_path}" | true'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


def test_inspect_shows_what_the_bundle_allows(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", bundle_path) == 0
    text = capsys.readouterr().out
    for line in (
        "hand-made: none, 13 files, ",
        "    float32: unet/model.onnx, ",
        "  height         16 to 256, multiples of 16",
        "  num_frames     1 to 32 at once, longer in windows",
        "  clip           6 frames of 32 x 48 pixels at 8 frames per second",
        "  ddim: 1-4, 8",
    ):
        assert line in text


def test_inspect_promises_no_windows_where_the_denoiser_takes_all_frames(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    inputs = manifest["components"]["unet"]["inputs"]
    inputs["encoder_hidden_states"]["shape"][0] = "num_frames"
    manifest["limits"]["num_frames"] |= {"minimum": 5, "maximum": 29, "multiple": 4, "offset": 1}
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    assert run("inspect", own_bundle) == 0
    assert "  num_frames     5 to 29, multiples of 4 plus 1\n" in capsys.readouterr().out


def test_inspect_prints_the_manifest_as_json(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", bundle_path, "--json") == 0
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == manifest["files"]
    assert shown["format_version"] == 1


def test_verify_passes_a_whole_bundle(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", bundle_path) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{bundle_path} is whole and works (")
    assert "FAILED" not in captured.err


def test_verify_names_what_is_damaged_and_exits_1(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_bundle / "schedules" / "ddim_2.json"
    path.write_text(path.read_text().replace("0.9", "0.8"))
    (own_bundle / "notes.txt").write_text("mine")
    assert run("verify", own_bundle, "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert not result["ok"]
    failed = {check["name"] for check in result["checks"] if not check["ok"]}
    assert failed == {"schedules/ddim_2.json", "schedule tables of ddim"}
    assert "not in manifest.json, never read: notes.txt" in captured.err
    assert captured.err.splitlines()[-1].startswith(
        "error: 2 of 11 checks failed: schedules/ddim_2.json, schedule tables of ddim"
    )


def test_verify_finds_a_graph_that_is_not_as_declared(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.runtime.hand_made_bundle import make_vae_decoder, save_graph, write_manifest

    manifest = json.loads((own_bundle / "manifest.json").read_text())
    save_graph(make_vae_decoder(), own_bundle / "text_encoder" / "model.onnx")
    write_manifest(own_bundle, manifest)
    assert run("verify", own_bundle) == 1
    assert (
        "FAILED text_encoder (float32) loads and is as declared: text_encoder: the manifest lists "
        "the inputs input_ids; the graph has latents: export again"
    ) in capsys.readouterr().err
