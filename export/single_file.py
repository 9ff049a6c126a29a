"""Turn a single Stable Diffusion 1.5 file into a checkpoint folder, through diffusers.

Source: diffusers.StableDiffusionPipeline.from_single_file (tests/export/test_single_file.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from mutoscope.export.checkpoint import INDEX_NAME, load_json_object
from mutoscope.export.errors import CheckpointError
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.tokenizer import check_tokenizer_files
from mutoscope.export.weight_files import (
    PICKLE_SUFFIXES,
    SAFETENSORS,
    check_safetensors,
    read_shapes,
)

# The parts of the file, and the prefixes of their weights, in the original (LDM) layout.
PARTS = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text encoder": ("cond_stage_model.transformer.",),
}
# What the folder needs: all else that a StableDiffusionPipeline may name is not exported.
NEEDED = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
NOT_NEEDED = ("feature_extractor", "image_encoder", "safety_checker")
# What diffusers calls other files that also start with a UNet, and what they are.
OTHER_TYPES = {
    "xl_base": ("Stable Diffusion XL", "StableDiffusionXLPipeline"),
    "xl_refiner": ("the Stable Diffusion XL refiner", None),
    "xl_inpaint": ("Stable Diffusion XL for inpainting", None),
    "playground-v2-5": ("Playground 2.5", None),
    "v2": ("Stable Diffusion 2", "StableDiffusionPipeline"),
    "inpainting": ("Stable Diffusion for inpainting", None),
    "inpainting_v2": ("Stable Diffusion 2 for inpainting", None),
    "upscale": ("a Stable Diffusion upscaler", None),
}


def is_single_file(checkpoint: str | Path) -> bool:
    """Return whether this is a file, as opposed to a folder or a hub id."""
    return Path(checkpoint).is_file()


def open_single_file(path: str | Path, *, config: Path | None, work_folder: Path) -> Path:
    """Write a single Stable Diffusion 1.5 file as a folder in diffusers layout; return the folder.

    Args:
        path: A safetensors file in the original layout, with UNet, VAE and text encoder.
        config: A folder in diffusers layout, whose configurations, tokenizer and scheduler belong
            to the model; its weights are not read, and need not be there. None fetches those of
            Stable Diffusion 1.5 from the hub, or takes them from the hub's cache.
        work_folder: A folder for the result, which is as large as the file.

    Raises:
        CheckpointError: The file is of another kind, or not whole, or a configuration is missing.
    """
    path = Path(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path.name} is a pickle file, which can run code when it is opened; only safetensors "
            "are read: convert it, where you trust it, with StableDiffusionPipeline."
            f"from_single_file(FILE).save_pretrained(FOLDER), or use its {SAFETENSORS} file"
        )
    if path.suffix != SAFETENSORS:
        raise CheckpointError(
            f"{path.name} is not a {SAFETENSORS} file: give one, or a folder in diffusers layout"
        )
    check_safetensors(path)
    _check_kind(path.name, read_shapes([path]))
    if config is not None:
        _check_config(config)
    folder = work_folder / path.stem
    pipeline = _load_pipeline(path, config)
    for name in NEEDED:
        _check_filled(path.name, name, getattr(pipeline, name))
    try:
        with quiet_libraries():
            pipeline.save_pretrained(folder, safe_serialization=True)
    except OSError as err:
        raise CheckpointError(
            f"{path.name} cannot be written as a folder to {work_folder} ({err.strerror}): it "
            f"needs {path.stat().st_size / 2**30:.1f} GiB there"
        ) from err
    return folder


def _load_pipeline(path: Path, config: Path | None) -> Any:
    """Return the StableDiffusionPipeline that diffusers makes of the file."""
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    settings: dict[str, Any] = dict.fromkeys(NOT_NEEDED)
    if config is not None:
        settings |= {"config": str(config), "local_files_only": True}
    try:
        with quiet_libraries():
            return StableDiffusionPipeline.from_single_file(
                str(path),
                torch_dtype=_find_dtype(path),
                requires_safety_checker=False,
                **settings,
            )
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        SingleFileComponentError,
        TypeError,
        ValueError,
    ) as err:
        if config is None and isinstance(err, OSError):
            raise CheckpointError(
                f"{path.name} needs the configurations and the tokenizer of Stable Diffusion 1.5, "
                "which cannot be fetched from the hub (no network?): give a folder that has them "
                "with --single-file-config"
            ) from err
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        if "meta tensor" in reason:  # a model was left empty in part
            raise CheckpointError(
                f"{path.name} lacks weights that its configurations ask for: the file is not "
                "whole, or the configurations are of another model"
            ) from err
        raise CheckpointError(
            f"{path.name} cannot be opened with the configurations of "
            f"{config.name if config else 'Stable Diffusion 1.5'}: {reason}"
        ) from err


def _find_dtype(path: Path) -> Any:
    """Return the type that holds all weights: float16 if all are, else float32."""
    import torch
    from safetensors import safe_open

    prefixes = tuple(prefix for part in PARTS.values() for prefix in part)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118
        types = {file.get_slice(name).get_dtype() for name in names}
    return torch.float16 if not types & {"F32", "F64", "BF16"} else torch.float32


def _check_kind(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` for a file of another kind."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    there = {
        part: any(key.startswith(prefixes) for key in shapes) for part, prefixes in PARTS.items()
    }
    if not there["unet"]:
        raise CheckpointError(f"{name} is {_name_other_kind(shapes)}")
    # diffusers looks at names and shapes only.
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    kind, pipeline = OTHER_TYPES.get(infer_diffusers_model_type(weights), (None, None))
    if kind:
        way_out = (
            f"convert it with {pipeline}.from_single_file(FILE).save_pretrained(FOLDER)"
            if pipeline
            else "use a Stable Diffusion 1.5 model"
        )
        raise CheckpointError(
            f"{name} is {kind}, and only single files of Stable Diffusion 1.5 are read: {way_out}"
        )
    lacking = [part for part, found in there.items() if not found]
    if lacking:
        raise CheckpointError(
            f"{name} has no {lacking[0]}: use the file that has {', '.join(PARTS)} in one, or a "
            "folder in diffusers layout"
        )


def _name_other_kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the rest of the line for a file without a UNet in the original layout."""
    if any("lora" in key for key in shapes):
        return "a LoRA, not a checkpoint: give the checkpoint it belongs to, and the LoRA by --lora"
    if any(".motion_modules." in key for key in shapes):
        return (
            "a motion adapter, not a checkpoint: give an image model as the checkpoint, and this "
            "by --motion-adapter"
        )
    if any(key.endswith("decoder.conv_in.weight") for key in shapes):
        return (
            "a VAE, not a checkpoint: convert it with AutoencoderKL.from_single_file(FILE)."
            "save_pretrained(FOLDER), and give that folder by --vae"
        )
    return (
        "not a Stable Diffusion 1.5 file in the original layout (it has no weight "
        "model.diffusion_model.*): give a folder in diffusers layout"
    )


def _check_config(config: Path) -> None:
    """Raise `CheckpointError` unless the folder can tell what the file does not."""
    if not (config / INDEX_NAME).is_file():
        raise CheckpointError(
            f"{config} has no {INDEX_NAME}: --single-file-config takes a folder in diffusers "
            "layout of Stable Diffusion 1.5, of which the weights are not needed"
        )
    index = load_json_object(config / INDEX_NAME)
    missing = [name for name in NEEDED if name not in index or not (config / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{config} has no {missing[0]}: --single-file-config takes a folder in diffusers "
            f"layout with {', '.join(NEEDED)}"
        )
    tokenizer_class = getattr(transformers, str(index["tokenizer"][1]), transformers.CLIPTokenizer)
    check_tokenizer_files(f"{config.name}/tokenizer", config / "tokenizer", tokenizer_class)


def _check_filled(name: str, component: str, model: Any) -> None:
    """Raise `CheckpointError` if weights of a component were not in the file."""
    tensors = model.named_parameters() if hasattr(model, "named_parameters") else ()
    empty = [key for key, tensor in tensors if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"{name} lacks {len(empty)} weights of its {component}, such as {empty[0]}: the file "
            "is not whole, or the configurations are of another model"
        )
