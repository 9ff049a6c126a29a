"""Open a checkpoint: a folder in diffusers layout, or the id of one on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.export.errors import CheckpointError
from mutoscope.export.library_noise import quiet_libraries

INDEX_NAME = "model_index.json"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Single-file checkpoints at the top of a repository and half-precision copies stay there: only the
# component folders are read.
CHECKPOINT_PATTERNS = ["*/*.safetensors", "*.json", "*.txt"]
CHECKPOINT_UNUSED = ["safety_checker/*", "feature_extractor/*", "*.fp16.*", "*non_ema*"]
ADAPTER_PATTERNS = ["diffusion_pytorch_model*.safetensors", "*.json"]
ADAPTER_UNUSED = ["*.fp16.*"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was found to be whole enough to read.

    Attributes:
        folder: The folder with model_index.json.
        name: Its name without the path, for people.
        pipeline_class: The diffusers pipeline it was saved from, e.g. "AnimateDiffPipeline".
        component_classes: For each component in model_index.json, its class name.
        motion_adapter: The folder of a separate motion adapter, if one was given.
    """

    folder: Path
    name: str
    pipeline_class: str
    component_classes: dict[str, str]
    motion_adapter: Path | None = None

    def component_folder(self, component: str) -> Path:
        """Return the folder of a component that must exist.

        Raises:
            CheckpointError: model_index.json does not name it, or its folder is absent.
        """
        folder = self.folder / component
        if component not in self.component_classes or not folder.is_dir():
            raise CheckpointError(
                f"{self.name} has no {component}: it must be a whole pipeline, saved with "
                "pipeline.save_pretrained(FOLDER)"
            )
        return folder

    def load_config(self, component: str, file_name: str = "config.json") -> dict[str, Any]:
        """Return the configuration of a component; raises `CheckpointError`."""
        return load_json_object(self.component_folder(component) / file_name)


def open_checkpoint(
    checkpoint: str | Path, *, motion_adapter: str | Path | None = None
) -> Checkpoint:
    """Return the checkpoint in a folder or, for an `owner/name`, after fetching it from the hub.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not in diffusers layout.
    """
    folder, name = _find_folder(
        checkpoint, CHECKPOINT_PATTERNS, CHECKPOINT_UNUSED, what="a checkpoint"
    )
    index_path = folder / INDEX_NAME
    if not index_path.is_file():
        raise CheckpointError(
            f"{checkpoint} has no {INDEX_NAME}, so it is not a checkpoint in diffusers layout: "
            "save one with pipeline.save_pretrained(FOLDER)"
        )
    index = load_json_object(index_path)
    pipeline_class = index.get("_class_name")
    if not isinstance(pipeline_class, str):
        raise CheckpointError(f"{index_path} does not say its _class_name: save the pipeline again")
    classes = {
        component: entry[1]
        for component, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    adapter = None
    if motion_adapter is not None:
        adapter, _ = _find_folder(
            motion_adapter, ADAPTER_PATTERNS, ADAPTER_UNUSED, what="a motion adapter"
        )
    return Checkpoint(folder, name, pipeline_class, classes, adapter)


def load_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint; raises `CheckpointError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise CheckpointError(f"{path} is missing: save the pipeline again") from err
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise CheckpointError(f"{path} is not valid JSON (damaged?): save it again") from err
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object: save the pipeline again")
    return value


def find_weights_variant(folder: Path) -> str | None:
    """Return the `variant` under which diffusers finds a component's weights, None for plain.

    Raises:
        CheckpointError: There are no weights, or only in a pickle file, which is never opened.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    safe = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    if any(".fp16." not in name for name in safe):
        return None
    if safe:
        return "fp16"
    where = f"{folder.parent.name}/{folder.name}"
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise CheckpointError(
            f"{where}/{pickles[0]} is a pickle file, which can run code when it is opened; only "
            "safetensors are read: convert it with "
            "pipeline.save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise CheckpointError(f"{where} has no weights (*.safetensors): save the pipeline again")


def load_model(model_class: Any, folder: Path) -> Any:
    """Return a diffusers or transformers model from a folder: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: The weights are damaged, are in a pickle file, or do not fill the model.
    """
    from safetensors import SafetensorError

    where = f"{folder.parent.name}/{folder.name}"
    variant = find_weights_variant(folder)
    try:
        with quiet_libraries():
            model, info = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                local_files_only=True,
            )
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as err:
        reason = str(err).strip().splitlines()
        raise CheckpointError(
            f"{where} cannot be opened as {model_class.__name__}: "
            f"{reason[0] if reason else type(err).__name__}"
        ) from err
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} weights of {model_class.__name__}, such as "
            f"{missing[0]}: the folder is not whole, or is of another model"
        )
    return model.float().eval().requires_grad_(False)


def _find_folder(
    checkpoint: str | Path, patterns: list[str], unused: list[str], *, what: str
) -> tuple[Path, str]:
    """Return the folder, and what to call it."""
    path = Path(checkpoint)
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        raise CheckpointError(
            f"{checkpoint} is a file, but {what} is a folder in diffusers layout: convert a single "
            "file with StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if isinstance(checkpoint, str) and HUB_ID.fullmatch(checkpoint):
        return _download(checkpoint, patterns, unused), checkpoint.partition("/")[2]
    raise CheckpointError(f"{checkpoint} does not exist: give the folder of {what}, or a hub id")


def _download(repo_id: str, patterns: list[str], unused: list[str]) -> Path:
    """Return the local folder of a hub repository, fetched unless it is there already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=unused))
        if not any(folder.rglob("*.safetensors")):  # some have half-precision weights only
            unused = [pattern for pattern in unused if "fp16" not in pattern]
            folder = Path(
                snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=unused)
            )
    except RepositoryNotFoundError as err:
        raise CheckpointError(
            f"{repo_id} is neither a folder here nor a model that the hub shows you: check the "
            "spelling, or log in with hf auth login"
        ) from err
    except OSError as err:
        raise CheckpointError(
            f"{repo_id} is not a folder here and cannot be fetched from the hub (no network?): "
            "give the folder of a checkpoint, or try again later"
        ) from err
    return folder
