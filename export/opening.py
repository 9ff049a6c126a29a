"""Open a checkpoint with all that goes with it: adapter, LoRAs, other decoders and denoisers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mutoscope.export.checkpoint import Checkpoint, open_checkpoint
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.few_step import find_few_step
from mutoscope.export.loras.files import LoraFile, parse_lora
from mutoscope.export.loras.fusion import Lora, read_loras
from mutoscope.export.presets import find_preset
from mutoscope.export.single_file import is_single_file, open_single_file
from mutoscope.runtime.errors import ParameterError

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What the UNets of Stable Diffusion have, where a configuration says nothing.
DEFAULT_LAYERS_PER_BLOCK = 2


class CheckpointOptions(TypedDict, total=False):
    """What may be said of a checkpoint beside its place.

    Attributes:
        motion_adapter: A MotionAdapter for an image model: folder, safetensors file or hub id.
        loras: LoRAs to fuse into the weights, as `FILE` or `FILE:SCALE`.
        vae: Folder or hub id of a VAE whose decoder takes the place of the checkpoint's; a tiny one
            (TAESD) is faster and smaller.
        preview_vae: The same, of a decoder beside it that shows previews.
        preset: The name of a few-step model's settings, as `PRESETS` has them.
        few_step_lora: A LoRA, as in `loras`, that makes a second denoiser of few steps, with its
            guidance inside, of the checkpoint's own.
        no_few_step: Leave out the second denoiser that the checkpoint has.
        single_file: The checkpoint is one safetensors file of Stable Diffusion 1.5.
        single_file_config: A folder with the configurations and the tokenizer that belong to it;
            None takes them from the hub.
    """

    motion_adapter: str | Path | None
    loras: Iterable[str | LoraFile]
    vae: str | Path | None
    preview_vae: str | Path | None
    preset: str | None
    few_step_lora: str | LoraFile | None
    no_few_step: bool
    single_file: bool
    single_file_config: str | Path | None


@contextmanager
def open_model(
    checkpoint: str | Path, work_folder: Path, **options: Unpack[CheckpointOptions]
) -> Iterator[tuple[Checkpoint, FamilyExport]]:
    """Open a checkpoint and its family, for as long as the context lasts.

    Args:
        checkpoint: A folder in diffusers layout, the id of one on the hub, or a single file.
        work_folder: A folder that exists, with room for a single file's weights.
        **options: See `CheckpointOptions`.

    Raises:
        CheckpointError: The checkpoint cannot be opened, or what goes with it does not fit.
        ParameterError: There is no such preset, or options do not go together.
    """
    preset = options.get("preset")
    found_preset = None if preset is None else find_preset(preset)
    few_step_lora = options.get("few_step_lora")
    for name in ("preset", "no_few_step"):
        if few_step_lora is not None and options.get(name):
            raise ParameterError(
                f"few_step_lora and {name} do not go together: leave out one of them"
            )
    lora_files = [_find_lora(lora) for lora in options.get("loras") or ()]
    few_step_files = [] if few_step_lora is None else [_find_lora(few_step_lora)]
    with ExitStack() as stack:
        if options.get("single_file"):
            if not is_single_file(checkpoint):
                raise CheckpointError(
                    f"{checkpoint} is not a file: leave out --single-file for a folder or a hub id"
                )
            config = options.get("single_file_config")
            parent = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".mutoscope-", dir=work_folder)
            )
            checkpoint = open_single_file(
                checkpoint,
                config=None if config is None else Path(config),
                work_folder=Path(parent),
            )
        elif options.get("single_file_config") is not None:
            raise CheckpointError("single_file_config is given without single_file: give both")
        opened = open_checkpoint(
            checkpoint,
            motion_adapter=options.get("motion_adapter"),
            vae=options.get("vae"),
            preview_vae=options.get("preview_vae"),
            preset=found_preset,
        )
        opened = replace(opened, loras=_read_loras(opened, lora_files))
        if not options.get("no_few_step"):
            loras = _read_loras(opened, few_step_files)
            opened = replace(opened, few_step=find_few_step(opened, *loras))
        yield opened, open_family(opened)


def _find_lora(lora: str | LoraFile) -> LoraFile:
    return parse_lora(lora) if isinstance(lora, str) else lora


def _read_loras(checkpoint: Checkpoint, files: list[LoraFile]) -> tuple[Lora, ...]:
    if not files:
        return ()
    layers = checkpoint.load_config("unet").get("layers_per_block", DEFAULT_LAYERS_PER_BLOCK)
    layers = layers if isinstance(layers, int) else DEFAULT_LAYERS_PER_BLOCK
    return tuple(read_loras(files, layers_per_block=layers))
