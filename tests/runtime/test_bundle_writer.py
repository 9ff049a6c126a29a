from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path

import pytest

from mutoscope.runtime import bundle_writer
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.bundle_writer import (
    check_output,
    edit_bundle,
    make_file_record,
    make_file_records,
    open_bundle_folder,
    save_manifest,
)
from mutoscope.runtime.errors import OutputError

GRAPH = "unet/model.onnx"
ADDED = "unet/model_int8.onnx"


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


def add_graph(bundle: Bundle, content: str = "new") -> None:
    """Put another variant of the denoiser into a bundle, or replace it."""
    with edit_bundle(bundle, without=[ADDED]) as folder:
        (folder / ADDED).write_text(content)
        unet = dataclasses.replace(
            bundle.manifest.components["unet"], variants={"float32": GRAPH, "int8": ADDED}
        )
        manifest = dataclasses.replace(
            bundle.manifest,
            components=bundle.manifest.components | {"unet": unet},
            files=bundle.manifest.files | {ADDED: make_file_record(folder / ADDED)},
        )
        save_manifest(manifest, folder)


def rename_during_edit(bundle: Bundle) -> None:
    with edit_bundle(bundle) as folder:
        save_manifest(bundle.manifest, folder)
        save_manifest(dataclasses.replace(bundle.manifest, name="another"), bundle.path)


def fail_to_add(bundle: Bundle, error: type[BaseException]) -> None:
    with edit_bundle(bundle) as folder:
        (folder / ADDED).write_text("half")
        raise error


def test_an_edited_bundle_has_the_old_files_and_the_new(own_bundle: Path) -> None:
    own_bundle.chmod(0o700)
    (own_bundle / "engines").mkdir()
    (own_bundle / "engines" / "built").write_text("built")
    inode = (own_bundle / GRAPH).stat().st_ino
    neighbours = sorted(own_bundle.parent.iterdir())
    bundle = Bundle.open(own_bundle)
    add_graph(bundle)
    edited = Bundle.open(own_bundle)
    assert edited.load_graph("unet", "int8").read_text() == "new"
    assert edited.manifest.files == bundle.manifest.files | {
        ADDED: make_file_records(own_bundle)[ADDED]
    }
    assert (own_bundle / "engines" / "built").read_text() == "built"
    assert (own_bundle / GRAPH).stat().st_ino == inode, "a large file was copied"
    assert stat.S_IMODE(own_bundle.stat().st_mode) == 0o700
    assert sorted(own_bundle.parent.iterdir()) == neighbours


def test_a_file_of_an_edited_bundle_can_be_replaced(own_bundle: Path) -> None:
    add_graph(Bundle.open(own_bundle), "first")
    other_name = own_bundle.parent / "kept"
    os.link(own_bundle / ADDED, other_name)
    add_graph(Bundle.open(own_bundle), "second")
    assert (own_bundle / ADDED).read_text() == "second"
    assert other_name.read_text() == "first", "the old file was written to"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_bundle_stays_as_it_was_when_an_edit_fails(
    own_bundle: Path, error: type[BaseException]
) -> None:
    before = make_file_records(own_bundle)
    neighbours = sorted(own_bundle.parent.iterdir())
    with pytest.raises(error):
        fail_to_add(Bundle.open(own_bundle), error)
    assert make_file_records(own_bundle) == before
    assert sorted(own_bundle.parent.iterdir()) == neighbours


def test_files_are_copied_where_there_are_no_links(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    before = make_file_records(own_bundle)
    monkeypatch.setattr(os, "link", refuse)
    add_graph(Bundle.open(own_bundle))
    after = make_file_records(own_bundle)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: record for name, record in before.items() if name != "manifest.json"
    }


def test_links_inside_a_bundle_stay_links(own_bundle: Path) -> None:
    (own_bundle / GRAPH).rename(own_bundle / "unet" / "graph")
    (own_bundle / GRAPH).symlink_to("graph")
    add_graph(Bundle.open(own_bundle))
    assert os.readlink(own_bundle / GRAPH) == "graph"
    Bundle.open(own_bundle).load_graph("unet")


def test_a_bundle_is_edited_through_a_link_to_it(own_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(own_bundle)
    add_graph(Bundle.open(link))
    assert link.is_symlink()
    assert "int8" in Bundle.open(own_bundle).manifest.components["unet"].variants


def test_an_edit_does_not_undo_that_of_another_command(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    add_graph(bundle, "other")
    with pytest.raises(OutputError, match=r"was changed by another .*: run this one again"):
        add_graph(bundle)
    with pytest.raises(OutputError, match="was changed by another command"):
        rename_during_edit(Bundle.open(own_bundle))
    assert Bundle.open(own_bundle).manifest.name == "another"
    assert (own_bundle / ADDED).read_text() == "other"


def test_a_bundle_without_write_permission_is_not_edited(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="own-bundle cannot be written: permission denied"):
        add_graph(Bundle.open(own_bundle))
