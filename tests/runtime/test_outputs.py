import errno
import os
import stat
from pathlib import Path

import pytest

from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.outputs import check_writable, new_file, new_folder


def write_half(target: Path, error: BaseException) -> None:
    """Write a part of a file, then fail."""
    with new_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_new_file_appears_when_the_block_is_done(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with new_file(target) as temporary:
        temporary.write_bytes(b"data")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_interrupts_leaves_nothing_and_keeps_what_was(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(kind):
        write_half(target, kind())
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with pytest.raises(OutputError, match=r"out.bin cannot be written: No space left on device; "):
        write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert os.listdir(tmp_path) == []


def test_a_file_that_fails_at_the_last_moment_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OutputError, match="Input/output error"),
        new_folder(tmp_path / "out") as folder,
    ):
        (folder / "a").write_bytes(b"a")
    assert os.listdir(tmp_path) == []


def test_new_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with new_folder(target) as temporary:
        (temporary / "new").write_bytes(b"new")
        assert os.listdir(target) == ["old"]
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out") as temporary:
            (temporary / "new").write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == []


def test_check_writable_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*nowhere: make it"):
        check_writable(tmp_path / "nowhere" / "out.mp4")


def test_check_writable_finds_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere, so the answer of the system is put in.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission in"):
        check_writable(tmp_path / "out.mp4")


def test_files_have_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with new_file(tmp_path / "out.bin") as temporary:
            temporary.write_bytes(b"data")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.bin").stat().st_mode) == 0o640
