"""The public face: names, the documented commands, the documented Python."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

import mutoscope.runtime as runtime
from mutoscope.runtime import errors, main
from scripts.write_cli_docs import make_document

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLIC_NAMES = {
    "Bundle",
    "BundleError",
    "CancelledError",
    "EngineError",
    "ExecutionProviderError",
    "MissingExtraError",
    "MutoscopeError",
    "NoiseGenerator",
    "OutputError",
    "ParameterError",
    "PreviewInfo",
    "SavedLatents",
    "ScheduleError",
    "ScheduleTable",
    "Settings",
    "StepInfo",
    "Timings",
    "Video",
    "VideoPipeline",
    "__version__",
    "denoise",
    "load_latents",
    "save_latents",
}


def test_the_public_names_are_these() -> None:
    assert set(runtime.__all__) == PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        assert hasattr(runtime, name)


def test_all_errors_are_public_and_of_one_tree() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(runtime, name), runtime.MutoscopeError)
        assert name in (errors.__doc__ or "")


def test_every_public_function_and_method_is_documented() -> None:
    for name in PUBLIC_NAMES - {"__version__"}:
        value = getattr(runtime, name)
        assert value.__doc__, name
        for member_name, member in inspect.getmembers(value, inspect.isroutine):
            ours = str(getattr(member, "__module__", "")).startswith("mutoscope")
            if ours and not member_name.startswith("_"):
                assert member.__doc__, f"{name}.{member_name}"


def test_docs_show_the_help_as_it_is() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == make_document(), "run scripts/write_cli_docs.py"


DOCUMENTS = (
    "benchmarks",
    "cli",
    "desktop",
    "evaluation",
    "export",
    "families",
    "jetson",
    "python-api",
    "speed",
    "tuning",
)


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        *(f"docs/{name}.md" for name in DOCUMENTS),
    ],
)
def test_documented_commands_parse(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = re.findall(r"^ *(?:\$ )?(mutoscope [a-z]+ [^#\n]*)", text, re.MULTILINE)
    for line in lines:
        _, name, *arguments = shlex.split(line)
        context = main.group.make_context("mutoscope", [], resilient_parsing=True)
        command = main.group.get_command(context, name)
        assert command is not None, line
        command.make_context(name, arguments, parent=context)


def test_python_in_the_docs_runs(
    preview_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(preview_bundle)
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/python-api.md", "exec"), {"__name__": "docs"})
    assert (tmp_path / "out.mp4").is_file()
