"""Open a checkpoint: a folder in diffusers layout, or the id of one on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutoscope.export.errors import CheckpointError
from mutoscope.export.hub import (
    HUB_FILE,
    HUB_ID,
    fetch_file,
    fetch_folder,
    name_component,
    name_path,
)
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.weight_files import (
    PICKLE_SUFFIXES,
    SAFETENSORS,
    check_safetensors,
    explain_pickle,
    find_weight_files,
)

if TYPE_CHECKING:
    from mutoscope.export.few_step import FewStep
    from mutoscope.export.presets import Preset

INDEX_NAME = "model_index.json"
# Single-file checkpoints at the top of a repository stay there: only component folders are read.
CHECKPOINT_PATTERNS = ["*/*.safetensors", "*.json", "*.txt"]
PART_PATTERNS = ["diffusion_pytorch_model*.safetensors", "*.json"]
VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
# What files have beside the model, and what computes nothing: the positions that old CLIP models
# saved, the other half of a whole CLIP model, and the last layers where the configuration leaves
# them out (a clip skip). Any other weight without a place in the model means that the folder is of
# another class, and that the model would lack a part.
HARMLESS_EXTRAS = re.compile(
    r"(.+\.)?position_ids|logit_scale|(text|visual)_projection\.weight|(text|vision)_model\..+"
    r"|encoder\.layers\.\d+\..+"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was found to be whole enough to read.

    Attributes:
        folder: The folder with model_index.json.
        name: Its name without the path, for people.
        pipeline_class: The diffusers pipeline it was saved from, e.g. "AnimateDiffPipeline".
        component_classes: For each component in model_index.json, its class name.
        motion_adapter: The folder or the safetensors file of a separate motion adapter.
        loras: The LoRAs to add to the weights.
        vae: The folder of a VAE whose decoder takes the place of the checkpoint's.
        preview_vae: The folder of a VAE that decodes previews.
        preset: The settings of a few-step model.
        few_step: The second denoiser, of few steps.
        folders: For components that do not lie in a folder of their name, that of the folder.
    """

    folder: Path
    name: str
    pipeline_class: str
    component_classes: dict[str, str]
    motion_adapter: Path | None = None
    loras: tuple[Any, ...] = ()
    vae: Path | None = None
    preview_vae: Path | None = None
    preset: Preset | None = None
    few_step: FewStep | None = None
    folders: Mapping[str, str] = field(default_factory=dict)

    def component_folder(self, component: str) -> Path:
        """Return the folder of a component that must exist.

        Raises:
            CheckpointError: model_index.json does not name it, or its folder is absent.
        """
        folder = self.folder / self.folders.get(component, component)
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
    checkpoint: str | Path,
    *,
    motion_adapter: str | Path | None = None,
    loras: Sequence[Any] = (),
    vae: str | Path | None = None,
    preview_vae: str | Path | None = None,
    preset: Preset | None = None,
) -> Checkpoint:
    """Return the checkpoint in a folder or, for an `owner/name`, after fetching it from the hub.

    Args:
        checkpoint: A folder or hub id.
        motion_adapter: A folder, a hub id, a safetensors file, or one on the hub
            (`owner/name/FILE.safetensors`).
        loras: Kept as they are.
        vae: Folder or hub id of a VAE.
        preview_vae: The same, for previews.
        preset: Kept as it is.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not in diffusers layout.
    """
    folder, name = _find_checkpoint(checkpoint)
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
    return Checkpoint(
        folder,
        name,
        pipeline_class,
        classes,
        motion_adapter=None if motion_adapter is None else _find_adapter(motion_adapter),
        loras=tuple(loras),
        vae=None if vae is None else _find_vae(vae),
        preview_vae=None if preview_vae is None else _find_vae(preview_vae),
        preset=preset,
    )


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


def load_model(model_class: Any, folder: Path) -> Any:
    """Return a diffusers or transformers model from a folder: float32, on the CPU, in eval mode.

    Weights that are float32 in the file are not copied: they stay views into the mapped file where
    the library maps it.

    Raises:
        CheckpointError: The weights are damaged, are in a pickle file, do not fill the model, or
            have no place in it.
    """
    from safetensors import SafetensorError

    where = name_component(folder)
    load_json_object(folder / "config.json")
    variant = find_weight_files(folder).variant
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
    check_keys(
        where,
        model_class.__name__,
        missing=info.get("missing_keys", ()),
        unexpected=info.get("unexpected_keys", ()),
    )
    return model.float().eval().requires_grad_(False)


def check_keys(
    where: str, class_name: str, *, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Raise `CheckpointError` if a model has not all of its weights, or a file has others."""
    missing = sorted(missing)
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} weights of {class_name}, such as {missing[0]}: the "
            "folder is not whole, or is of another model"
        )
    extra = sorted(key for key in unexpected if not HARMLESS_EXTRAS.fullmatch(key))
    if extra:
        raise CheckpointError(
            f"{where} has {len(extra)} weights that {class_name} has not, such as {extra[0]}: its "
            "config.json is of another model, save the pipeline again"
        )


def _find_checkpoint(checkpoint: str | Path) -> tuple[Path, str]:
    """Return the folder of a checkpoint, and what to call it."""
    path = Path(checkpoint)
    if path.is_file() and path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(explain_pickle(path.name))
    if path.is_file():
        raise CheckpointError(
            f"{checkpoint} is a file, but a checkpoint is a folder in diffusers layout: add "
            "--single-file for Stable Diffusion 1.5, or convert it with "
            "PIPELINE.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    folder = _find_folder(checkpoint, CHECKPOINT_PATTERNS, what="a checkpoint")
    return folder, name_path(folder) if path.is_dir() else str(checkpoint).partition("/")[2]


def _find_adapter(motion_adapter: str | Path) -> Path:
    """Return the folder or the safetensors file of a motion adapter."""
    path = Path(motion_adapter)
    if path.is_file():
        check_safetensors(path)
        return path
    if isinstance(motion_adapter, str) and not path.exists() and HUB_FILE.fullmatch(motion_adapter):
        return fetch_file(motion_adapter)
    folder = _find_folder(motion_adapter, PART_PATTERNS, what="a motion adapter")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{motion_adapter} has no config.json, so it is not a motion adapter in diffusers "
            f"layout: give one of its files, such as {motion_adapter}/FILE{SAFETENSORS}"
        )
    return folder


def _find_vae(vae: str | Path) -> Path:
    """Return the folder of a VAE that is alone."""
    path = Path(vae)
    if path.is_file():
        raise CheckpointError(
            f"{vae} is a file, but a VAE is a folder with a config.json: convert it with "
            "AutoencoderKL.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    folder = _find_folder(vae, PART_PATTERNS, what="a VAE")
    if (folder / INDEX_NAME).is_file():
        raise CheckpointError(f"{vae} is a whole checkpoint: give the VAE inside it, {vae}/vae")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{vae} has no config.json, so it is not a VAE in diffusers layout: save one with "
            "vae.save_pretrained(FOLDER)"
        )
    found = load_json_object(folder / "config.json").get("_class_name")
    if found not in VAE_CLASSES:
        raise CheckpointError(f"{vae} is a {found}, not a VAE: use {' or '.join(VAE_CLASSES)}")
    find_weight_files(folder)
    return folder


def _find_folder(given: str | Path, patterns: list[str], *, what: str) -> Path:
    """Return a folder that is here, or was fetched from the hub."""
    path = Path(given)
    if path.is_dir():
        return path
    if isinstance(given, str) and HUB_ID.fullmatch(given):
        return fetch_folder(given, patterns)
    raise CheckpointError(f"{given} does not exist: give the folder of {what}, or a hub id")
