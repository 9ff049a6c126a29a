from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.opening import CheckpointOptions, open_model
from tests.conftest import MakeOnce

OpenModel = Callable[..., tuple[Checkpoint, FamilyExport]]


@pytest.fixture(scope="session")
def few_step_checkpoint(tiny_checkpoint: Path, make_once: MakeOnce) -> Path:
    """`tiny_checkpoint` with other random weights for a second denoiser."""

    def fill(folder: Path) -> Path:
        from tests.few_step_checkpoints import save_few_step

        return save_few_step(tiny_checkpoint, folder / "tiny")

    return make_once("few-step", fill)


@pytest.fixture
def open_parts(tmp_path: Path, request: pytest.FixtureRequest) -> OpenModel:
    """A function that opens a checkpoint with options until the end of the test."""

    def open_it(checkpoint: Path, **options: Any) -> tuple[Checkpoint, FamilyExport]:
        opened: AbstractContextManager[Any] = open_model(
            checkpoint, tmp_path, **CheckpointOptions(**options)
        )
        parts: tuple[Checkpoint, FamilyExport] = opened.__enter__()
        request.addfinalizer(lambda: opened.__exit__(None, None, None))
        return parts

    return open_it


@pytest.fixture
def edit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that copies a checkpoint and sets values in one of its JSON files.

    A value of None takes the key out. The weights are links: they are not to be changed.
    """

    def edit(checkpoint: Path, file_name: str, values: Mapping[str, Any]) -> Path:
        copy = tmp_path_factory.mktemp("edited") / checkpoint.name
        shutil.copytree(checkpoint, copy, copy_function=_link)
        path = copy / file_name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.unlink(missing_ok=True)
        content.update(values)
        content = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(content))
        return copy

    return edit


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)
