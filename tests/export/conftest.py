from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


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
