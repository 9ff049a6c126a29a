"""Write a file or a folder whole or not at all.

What is written goes to a temporary name beside the target and is renamed when it is complete. If
anything goes wrong, Ctrl-C included, nothing is left behind and an older file stays as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mutoscope.runtime.errors import OutputError


def check_writable(path: Path) -> None:
    """Raise `OutputError` unless something can be made beside `path`."""
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}: make it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written: no permission in {path.parent}: choose another folder"
        )


def check_replaceable(path: Path, *, force: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raise `OutputError` if `path` exists and may not be replaced.

    Args:
        path: The file or folder to write.
        force: Whether the caller asked to replace.
        is_ours: Whether a file in a folder is one that we would have written; a folder with any
            other file is never replaced.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        if not force:
            raise OutputError(f"{path} exists: use --force (force=True) or another name")
        return
    names = sorted(path.iterdir())
    for name in names:
        if name.is_dir() or not is_ours(name):
            raise OutputError(
                f"{path} is a folder with other files in it ({name.name}): use another name"
            )
    if names and not force:
        raise OutputError(f"{path} exists: use --force (force=True) or another name")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    Raises:
        OutputError: The file cannot be written: no space, no permission.
    """
    with _replace_when_done(path) as temporary:
        yield temporary
        _sync(temporary)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; rename it to `path` if the block succeeds.

    Raises:
        OutputError: The folder cannot be written: no space, no permission.
    """
    with _replace_when_done(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _sync(file)


@contextmanager
def _replace_when_done(path: Path) -> Iterator[Path]:
    mark = secrets.token_hex(4)
    temporary = path.parent / f".{path.name}.{mark}.part"
    try:
        yield temporary
        if path.is_dir() and not path.is_symlink():
            _replace_folder(path, temporary, path.parent / f".{path.name}.{mark}.old")
        else:
            temporary.replace(path)
    except OSError as err:
        reason = err.strerror or str(err)
        raise OutputError(f"{path} cannot be written: {reason}; nothing was left behind") from err
    finally:
        # After a rename there is nothing under this name any more.
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _replace_folder(path: Path, new: Path, old: Path) -> None:
    """Put a new folder in the place of one that has files: no system call does that at once."""
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Have the system write a file to the disk, so that a full disk shows before the rename."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
