"""Write or change a bundle, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.manifest import MANIFEST_NAME, FileRecord, Manifest

CHUNK_BYTES = 1 << 20
REASONS = {
    errno.ENOSPC: "the disk is full: free some space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EACCES: "permission denied: write elsewhere",
    errno.EPERM: "permission denied: write elsewhere",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.EBUSY: "it is in use or a mount point: use a folder inside of that",
}


def check_output(output: Path, *, force: bool) -> None:
    """Raise `OutputError` if a bundle may not be written to `output`.

    With `force` a bundle may be replaced; anything else never is.
    """
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent} is not a folder: make it first, or write elsewhere")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise OutputError(f"{output} exists and is not a folder: choose another name")
    if (output / MANIFEST_NAME).is_file():
        if not force:
            raise OutputError(f"{output} exists: choose another name, or replace it with --force")
        return
    if any(output.iterdir()):
        raise OutputError(
            f"{output} exists and is not a bundle (it has no {MANIFEST_NAME}), so it is never "
            "replaced: choose another name"
        )


@contextmanager
def open_bundle_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes `output` when the block ends without an error.

    The files are on the disk before the name changes. After an error, Ctrl-C included, nothing is
    left and an old bundle stays as it was.

    Raises:
        OutputError: `output` exists, or it cannot be written.
    """
    check_output(output, force=force)
    with explain_write_errors(output):
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder.chmod(0o777 & ~_read_umask())
        with explain_write_errors(output):
            yield folder
            _sync_tree(folder)
            check_output(output, force=force)
            _replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def edit_bundle(bundle: Bundle, *, without: Collection[str] = ()) -> Iterator[Path]:
    """Give a temporary folder with the bundle's files, which replaces the bundle at the end.

    Files are added in the block, and the new manifest is written (`save_manifest`). After an error,
    Ctrl-C included, the bundle is as it was. Files that the manifest does not list, such as those
    under engines/, are kept.

    Args:
        bundle: The bundle; its manifest is not there in the folder.
        without: Files of it that are left out, because they are replaced or no longer wanted. Never
            write to one of the others: where the file system can, they are links to the bundle's.

    Raises:
        OutputError: The bundle cannot be written, or was changed since it was opened.
    """
    output = bundle.path.resolve()
    _check_unchanged(bundle)
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"{output} cannot be written: {REASONS[errno.EACCES]}")
    with open_bundle_folder(output, force=True) as folder:
        shutil.copymode(output, folder)
        _link_files(output, folder, {MANIFEST_NAME, *without})
        yield folder
        _check_unchanged(bundle)


def save_manifest(manifest: Manifest, folder: Path) -> Manifest:
    """Write the manifest of the bundle in a folder and return what a reader makes of it.

    Raises:
        BundleError: It contradicts itself.
    """
    path = folder / MANIFEST_NAME
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return Manifest.load(path)


@contextmanager
def explain_write_errors(output: Path) -> Iterator[None]:
    """Turn what an operating system says of a write into one line."""
    try:
        yield
    except OSError as err:
        if err.errno not in REASONS:
            raise
        raise OutputError(f"{output} cannot be written: {REASONS[err.errno]}") from err


def make_file_records(folder: Path) -> dict[str, FileRecord]:
    """Return size and sha256 of every file under a folder, by its path inside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): make_file_record(path) for path in paths}


def make_file_record(path: Path) -> FileRecord:
    """Return size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return FileRecord(path.stat().st_size, digest.hexdigest())


def _check_unchanged(bundle: Bundle) -> None:
    """Raise `OutputError` if somebody else wrote the bundle since it was opened."""
    if Manifest.load(bundle.path / MANIFEST_NAME) != bundle.manifest:
        raise OutputError(
            f"{bundle.path} was changed by another command in the meantime: run this one again"
        )


def _link_files(source: Path, folder: Path, without: Collection[str]) -> None:
    """Give a folder the files of another one, as links; on a file system without links, copies."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            (folder / name).mkdir()
        elif name.as_posix() not in without:
            try:
                os.link(path, folder / name, follow_symlinks=False)
            except (OSError, NotImplementedError):
                shutil.copy2(path, folder / name, follow_symlinks=False)


def _replace(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`; an old bundle is out of the way only for that moment."""
    if not output.exists():
        folder.rename(output)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
        try:
            output.rename(old / "bundle")
            try:
                folder.rename(output)
            except BaseException:
                (old / "bundle").rename(output)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    _sync(output.parent)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; Windows cannot open a folder for that."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_umask() -> int:
    """Return the umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
