"""What the runtime imports: never what only the export needs, and nothing large before its time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runtime.conftest import RunCli

FORBIDDEN = {"torch", "onnx", "onnxscript", "diffusers", "transformers", "safetensors"}
# Loaded when the first graph, prompt or file needs them.
LATER = {"onnxruntime", "tokenizers", "av", "PIL", "click"}


def run_python(code: str, *arguments: str) -> Any:
    """Run code in a fresh interpreter; it leaves its answer in `result`."""
    program = f"import json, sys\n{code}\nprint(json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def roots(code: str, *arguments: str) -> set[str]:
    """The top-level modules that are loaded after the code has run."""
    collect = "result = sorted({name.partition('.')[0] for name in sys.modules})"
    return set(run_python(f"{code}\n{collect}", *arguments))


def test_a_generation_never_imports_what_only_the_export_needs(
    bundle_path: Path, tmp_path: Path
) -> None:
    code = (
        "from mutoscope.runtime import VideoPipeline\n"
        "with VideoPipeline.open(sys.argv[1]) as pipeline:\n"
        "    video = pipeline.generate('a red circle', scheduler='euler-ancestral')\n"
        "for ending in ('.mp4', '.webm', '.gif', '.webp', '.apng', '.npy', ''):\n"
        "    video.save(sys.argv[2] + '/out' + ending)"
    )
    found = roots(code, str(bundle_path), str(tmp_path))
    assert not FORBIDDEN & found
    assert found >= {"onnxruntime", "tokenizers", "av", "PIL"}


def test_the_command_line_works_where_torch_and_onnx_are_not_installed(
    bundle_path: Path, tmp_path: Path
) -> None:
    code = (
        f"for name in {sorted(FORBIDDEN)}:\n"
        "    sys.modules[name] = None\n"
        "from mutoscope.runtime.main import run\n"
        "bundle, out = sys.argv[1:]\n"
        "codes = [run(['generate', 'a', '--bundle', bundle, '-o', out + '/x.mp4'])]\n"
        "sys.stdout = sys.stderr\n"
        "codes += [run(['inspect', bundle]), run(['verify', bundle]), run(['--help'])]\n"
        "sys.stdout = sys.__stdout__\n"
        "result = codes"
    )
    assert run_python(code, str(bundle_path), str(tmp_path)) == [0, 0, 0, 0]


def test_the_export_says_what_is_missing_where_torch_is_not_installed(tmp_path: Path) -> None:
    code = (
        f"for name in {sorted(FORBIDDEN)}:\n"
        "    sys.modules[name] = None\n"
        "import contextlib, io\n"
        "from mutoscope.runtime.main import run\n"
        "errors = io.StringIO()\n"
        "with contextlib.redirect_stderr(errors):\n"
        "    code = run(['export', sys.argv[1], '-o', sys.argv[1] + '/bundle'])\n"
        "result = [code, errors.getvalue()]"
    )
    exit_code, error = run_python(code, str(tmp_path))
    assert exit_code == 1
    assert error.endswith("which is not installed: pip install 'mutoscope[export]'\n")
    assert error.splitlines()[-1].startswith("error: this command needs ")


def test_import_loads_numpy_and_nothing_else_that_is_large() -> None:
    found = roots("import mutoscope.runtime")
    assert not (LATER | FORBIDDEN) & found


def test_stdout_is_the_json_object_and_nothing_else(run_cli: RunCli, bundle_path: Path) -> None:
    for command in (
        ["generate", "a red circle", "--bundle", bundle_path, "-o", "x.webp"],
        ["inspect", bundle_path],
        ["verify", bundle_path],
    ):
        done = run_cli(*command, "--json")
        assert isinstance(json.loads(done.stdout), dict)
        assert done.stdout.count("\n") == 1
