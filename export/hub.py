"""Fetch checkpoints from the Hugging Face hub; never a pickle file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mutoscope.export.errors import CheckpointError

_NAME = r"[A-Za-z0-9][\w.-]*"
HUB_ID = re.compile(rf"{_NAME}/{_NAME}")
HUB_FILE = re.compile(rf"(?P<repo_id>{_NAME}/{_NAME})/(?P<file>[\w./-]+\.safetensors)")
UNUSED = ["safety_checker/*"]
# Copies of what plain names hold already; fetched only for a component that has nothing else.
VARIANTS = ["*.fp16.*", "*.fp16-*", "*non_ema*"]


def name_path(path: Path) -> str:
    """Return what to call a folder or file: its name, not that of the hub's cache for it.

    The cache keeps `owner/name` as models--owner--name/snapshots/COMMIT, with links to blobs.
    """
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rpartition("--")[2]
    if path.parent.parent.name == "snapshots":
        return path.name
    return path.name if path.is_symlink() else path.resolve().name


def name_component(folder: Path) -> str:
    """Return what to call the folder of a component: CHECKPOINT/COMPONENT."""
    return f"{name_path(folder.parent)}/{folder.name}"


def fetch_folder(repo_id: str, patterns: list[str]) -> Path:
    """Return the local folder of a hub repository, fetched unless it is there already.

    Raises:
        CheckpointError: There is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    def fetch(allowed: list[str], unused: list[str]) -> Path:
        return _explain_failures(
            repo_id,
            lambda: snapshot_download(repo_id, allow_patterns=allowed, ignore_patterns=unused),
        )

    folder = fetch(patterns, UNUSED + VARIANTS)
    lacking = [
        config.parent.relative_to(folder).as_posix()
        for config in sorted(folder.rglob("config.json"))
        if not any(config.parent.glob("*.safetensors"))
    ]
    if lacking:  # these have half-precision weights only
        prefixes = ["" if name == "." else f"{name}/" for name in lacking]
        allowed = [f"{prefix}*{end}" for prefix in prefixes for end in (".safetensors", ".json")]
        folder = fetch(allowed, UNUSED)
    return folder


def fetch_file(given: str) -> Path:
    """Return the local copy of one file of a hub repository, as `owner/name/FILE.safetensors`."""
    from huggingface_hub import hf_hub_download

    match = HUB_FILE.fullmatch(given)
    if match is None:
        raise CheckpointError(
            f"{given} is not a file on the hub: give it as owner/name/FILE.safetensors"
        )
    return _explain_failures(given, lambda: hf_hub_download(match["repo_id"], match["file"]))


def _explain_failures(given: str, fetch: Callable[[], str]) -> Path:
    """Return what `fetch` returns as a path; raises `CheckpointError` if it fails."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(fetch())
    except RepositoryNotFoundError as err:
        raise CheckpointError(
            f"{given} is neither a folder here nor a model that the hub shows you: check the "
            "spelling, or log in with hf auth login"
        ) from err
    except (OSError, EntryNotFoundError) as err:
        # The local kind, which is also an EntryNotFoundError, is raised without a network.
        absent = isinstance(err, EntryNotFoundError)
        if absent and not isinstance(err, LocalEntryNotFoundError):
            raise CheckpointError(
                f"{given} is not in its repository on the hub: check the name of the file"
            ) from err
        raise CheckpointError(
            f"{given} is not a folder here and cannot be fetched from the hub (no network?): "
            "give the folder of a checkpoint, or try again later"
        ) from err
