"""Write docs/cli.md from the help of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mutoscope.runtime import main

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 80

INTRODUCTION = """\
# The command line

Written by `make docs` from the commands' own help; a test compares.

- Data goes to stdout, everything else to stderr. With `--json`, stdout is one JSON object.
- Exit codes: 0; 1 for an error, which is one line that begins with `error: `; 2 for wrong usage;
  130 after Ctrl-C.
- Outputs are written under a temporary name and renamed when they are complete. What exists is
  replaced only with `--force`.
- Long work shows a progress bar on a terminal, and a line every half minute in a log.
"""


def format_help(name: str | None) -> str:
    """Return the text of --help of a command, or of the group if the name is None."""
    options: dict[str, Any] = {"resilient_parsing": True, "terminal_width": WIDTH}
    group_context = main.group.make_context("mutoscope", [], **options)
    if name is None:
        return group_context.get_help()
    command = main.group.get_command(group_context, name)
    assert command is not None
    return command.make_context(name, [], parent=group_context, **options).get_help()


def make_document() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, f"## mutoscope\n\n```text\n{format_help(None)}\n```\n"]
    parts += [
        f"## mutoscope {name}\n\n```text\n{format_help(name)}\n```\n" for name in main.COMMANDS
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(make_document(), encoding="utf-8")
