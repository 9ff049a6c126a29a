from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mutoscope.export import bundle_writer
from mutoscope.export.bundle_writer import check_output, open_bundle_folder
from mutoscope.runtime.errors import OutputError


def make_bundle(path: Path, content: str = "{}") -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(content)
    return path


def write_half(output: Path, error: type[BaseException]) -> None:
    with open_bundle_folder(output, force=False) as folder:
        (folder / "half").write_text("half")
        raise error


def test_a_bundle_appears_whole_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with open_bundle_folder(output, force=False) as folder:
        (folder / "manifest.json").write_text("{}")
        assert not output.exists()
    assert (output / "manifest.json").read_text() == "{}"
    assert list(tmp_path.iterdir()) == [output]


def test_a_bundle_can_be_read_by_others_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with open_bundle_folder(tmp_path / "bundle", force=False):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(tmp_path / "bundle", error)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_replaced_with_force_only(tmp_path: Path) -> None:
    output = make_bundle(tmp_path / "bundle", "old")
    with pytest.raises(OutputError, match=r"bundle exists: .* --force"):
        check_output(output, force=False)
    with open_bundle_folder(output, force=True) as folder:
        (folder / "manifest.json").write_text("new")
        assert (output / "manifest.json").read_text() == "old"
    assert (output / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_the_old_bundle_comes_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = make_bundle(tmp_path / "bundle", "old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if target == output and self.name != "bundle":
            raise OSError(errno.EACCES, "denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with (
        pytest.raises(OutputError, match="permission denied"),
        open_bundle_folder(output, force=True) as folder,
    ):
        (folder / "manifest.json").write_text("new")
    assert (output / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "photo.png").write_text("dear")
    file = tmp_path / "file"
    file.write_text("dear")
    link = tmp_path / "link"
    link.symlink_to(make_bundle(tmp_path / "bundle"))
    with pytest.raises(OutputError, match=r"is not a bundle \(it has no manifest\.json\)"):
        check_output(folder, force=True)
    for path in (file, link):
        with pytest.raises(OutputError, match="is not a folder: choose another name"):
            check_output(path, force=True)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    with open_bundle_folder(output, force=False) as folder:
        (folder / "manifest.json").write_text("{}")
    assert (output / "manifest.json").exists()


def test_the_folder_above_must_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent is not a folder: make it first"):
        check_output(tmp_path / "absent" / "bundle", force=False)


def test_write_errors_say_what_to_do(tmp_path: Path) -> None:
    for number, reason in bundle_writer.REASONS.items():
        error = OSError(number, os.strerror(number))
        with (
            pytest.raises(OutputError, match=reason),
            bundle_writer.explain_write_errors(tmp_path),
        ):
            raise error
    with pytest.raises(FileNotFoundError), bundle_writer.explain_write_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such file")
