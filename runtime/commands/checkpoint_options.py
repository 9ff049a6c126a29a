"""The options that say what goes with a checkpoint, for the commands that read one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--motion-adapter",
        metavar="ADAPTER",
        help="A motion adapter for a checkpoint that makes images only: a folder, a safetensors "
        "file or a hub id.",
    ),
    click.option(
        "--lora",
        "loras",
        multiple=True,
        metavar="FILE[:SCALE]",
        help="A LoRA to fuse into the weights, with its strength (1 if not given). May be given "
        "again.",
    ),
    click.option(
        "--vae",
        metavar="DIR",
        help="Folder or hub id of a VAE to decode with in place of the checkpoint's, such as a "
        "tiny one (TAESD).",
    ),
    click.option(
        "--preview-vae",
        metavar="DIR",
        help="Folder or hub id of a tiny VAE that mutoscope generate --preview shows steps with.",
    ),
    click.option(
        "--preset",
        metavar="NAME",
        help="Scheduler, steps and guidance of a few-step model: lightning-1, lightning-2, "
        "lightning-4, lightning-8 or lcm.",
    ),
    click.option(
        "--few-step-lora",
        metavar="FILE[:SCALE]",
        help="A LoRA that makes a second denoiser of the checkpoint's own: one of few steps, with "
        "its guidance inside, which becomes the bundle's default beside the whole one.",
    ),
    click.option(
        "--no-few-step",
        is_flag=True,
        help="Leave out the second denoiser of a checkpoint that has one.",
    ),
    click.option(
        "--single-file",
        is_flag=True,
        help="The checkpoint is one safetensors file of Stable Diffusion 1.5.",
    ),
    click.option(
        "--single-file-config",
        metavar="DIR",
        show_default="from the hub",
        help="Folder in diffusers layout whose configurations and tokenizer belong to it.",
    ),
)


def checkpoint_options(command: Command) -> Command:
    """Add the options to a command; it gets them as the keywords of `CheckpointOptions`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check_needs_checkpoint(checkpoint: str | None, options: dict[str, Any]) -> None:
    """Raise `click.UsageError` if one of the options is given without a checkpoint."""
    given = [name for name, value in options.items() if value]
    if given and not checkpoint:
        option = "lora" if given[0] == "loras" else given[0].replace("_", "-")
        raise click.UsageError(f"--{option} needs --checkpoint")
