"""The command line: `mutoscope COMMAND`.

Commands are imported when they are used, so that the lean installation starts without what only the
export needs, and fast.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from mutoscope.runtime import __version__
from mutoscope.runtime.errors import MissingExtraError, MutoscopeError

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Name: where the command is, and its line in the help of the group.
COMMANDS = {
    "bench": (
        "mutoscope.runtime.commands.bench:bench",
        "Measure the time and the memory of a bundle's components.",
    ),
    "build": (
        "mutoscope.runtime.commands.build:build",
        "Build a bundle's graphs for one machine, so that they load or run faster.",
    ),
    "calibrate": (
        "mutoscope.calibration.commands.calibrate:calibrate",
        "Add an int8 variant to a bundle, of what is faster in it and as good.",
    ),
    "doctor": (
        "mutoscope.runtime.commands.doctor:doctor",
        "Show what this machine has to run bundles with, what it lacks, and what would add it.",
    ),
    "evaluate": (
        "mutoscope.runtime.commands.evaluate:evaluate",
        "Measure how steady clips are over time (needs mutoscope[evaluate]).",
    ),
    "export": (
        "mutoscope.export.commands.export:export",
        "Make a bundle from a checkpoint (needs mutoscope[export]).",
    ),
    "decode": (
        "mutoscope.runtime.commands.decode:decode",
        "Make a video of saved latents.",
    ),
    "generate": (
        "mutoscope.runtime.commands.generate:generate",
        "Make a video from a prompt, an image or both.",
    ),
    "inspect": (
        "mutoscope.runtime.commands.inspect:inspect",
        "Show what a bundle is and what it allows.",
    ),
    "tune": (
        "mutoscope.calibration.commands.tune:tune",
        "Find the steps of a schedule that can do with less work, and add them as a plan.",
    ),
    "verify": (
        "mutoscope.runtime.commands.verify:verify",
        "Check that a bundle is whole and works.",
    ),
}
# Modules that the lean installation does not have, by the extra that brings them.
EXTRAS = {
    "calibrate": ("onnx_ir",),
    "evaluate": ("cv2",),
    "export": (
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "huggingface_hub",
        "onnx",
        "onnxscript",
    ),
}


class ReaderGoneError(Exception):
    """Whoever read our output has closed it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, importing its module."""
        if name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run a command; click would end the process if the reader of its output has gone."""
        try:
            return super().invoke(context)
        except BrokenPipeError as err:
            raise ReaderGoneError from err

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(context)])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Example: mutoscope generate "a red circle moves left" -o out.mp4',
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def group() -> None:
    """Run exported video diffusion models, without PyTorch."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0; 1 for an error that we raise, in one line on stderr; 2 for wrong usage; 130 after
    Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        code = run(arguments)
        sys.stdout.flush()
    except (BrokenPipeError, ReaderGoneError):
        # Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        result: Any = group.main(arguments, prog_name="mutoscope", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.format_message(), err=True)
        return err.exit_code
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted; nothing was left behind", err=True)
        return EXIT_INTERRUPTED
    except MutoscopeError as err:
        return _report(err)
    except ModuleNotFoundError as err:
        return _report(make_missing_extra_error(err))
    except MemoryError:
        return _report("out of memory: use a smaller height, width or num_frames")
    return result if isinstance(result, int) else EXIT_OK


def make_missing_extra_error(err: ModuleNotFoundError) -> MissingExtraError:
    """Return the error for a module that only an extra brings; raise any other again."""
    module = (err.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return MissingExtraError(
                f"this command needs {module}, which is not installed: "
                f"pip install 'mutoscope[{extra}]'"
            )
    raise err


def _report(error: object) -> int:
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
    return EXIT_ERROR


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that half-written files are removed on the way out.
    sys.exit(EXIT_TERMINATED)
