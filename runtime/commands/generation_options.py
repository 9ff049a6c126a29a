"""The options of `mutoscope generate` that say what is made, as `make_settings` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mutoscope.runtime.guidance import GUIDANCE_PASSES

_FROM_BUNDLE = "from the bundle"
_WITHOUT_GUIDANCE = "few-step schedules take no guidance: give --scheduler ddim, or another, too."


def parse_conditions(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> dict[str, float]:
    """Return `NAME=X` options as a mapping."""
    conditions: dict[str, float] = {}
    for text in value:
        name, _, number = text.partition("=")
        try:
            conditions[name.strip()] = float(number)
        except ValueError as err:
            raise click.BadParameter(
                f"{text!r} is not NAME=NUMBER: use motion_bucket_id=127"
            ) from err
    return conditions


_OPTIONS = (
    click.option(
        "--seed",
        type=int,
        metavar="N",
        show_default="random",
        help="Start of the random numbers, 0 to 2^64 - 1; the same seed gives the same video.",
    ),
    click.option(
        "--num-inference-steps",
        type=int,
        metavar="N",
        show_default=_FROM_BUNDLE,
        help="Denoising steps, one of the counts that the bundle has a schedule table for. Without "
        "--scheduler, where the default one has no such table, the first that has one is taken. "
        "--scheduler alone takes the default count if it has a table of it for the denoiser that "
        "runs by default, else its most up to 25, else its fewest.",
    ),
    click.option(
        "--guidance-scale",
        type=float,
        metavar="X",
        show_default=_FROM_BUNDLE,
        help="Weight of the prompt, at least 1; 1 turns guidance off, in half the time. "
        + _WITHOUT_GUIDANCE,
    ),
    click.option(
        "--min-guidance-scale",
        type=float,
        metavar="X",
        show_default=_FROM_BUNDLE,
        help="Guidance of the first frame, at least 1; it rises to the guidance scale at the last.",
    ),
    click.option(
        "--negative-prompt",
        metavar="TEXT",
        show_default=_FROM_BUNDLE,
        help=f"What to guide away from; needs a guidance scale above 1. {_WITHOUT_GUIDANCE}",
    ),
    click.option(
        "--num-frames",
        type=int,
        metavar="N",
        show_default=_FROM_BUNDLE,
        help="Length in frames; 1 makes an image. A clip longer than the bundle takes at once is "
        "made in overlapping windows.",
    ),
    click.option("--height", type=int, metavar="N", show_default=_FROM_BUNDLE, help="Pixels."),
    click.option("--width", type=int, metavar="N", show_default=_FROM_BUNDLE, help="Pixels."),
    click.option(
        "--frame-rate",
        type=float,
        metavar="X",
        show_default=_FROM_BUNDLE,
        help="Frames per second of the file; some models are told.",
    ),
    click.option(
        "--condition",
        "conditions",
        multiple=True,
        metavar="NAME=X",
        callback=parse_conditions,
        help="A number that the bundle's model takes, e.g. motion_bucket_id=127; inspect lists "
        "them. May be given again.",
    ),
    click.option(
        "--scheduler",
        metavar="NAME",
        show_default=_FROM_BUNDLE,
        help="One of the bundle's schedulers, e.g. ddim, euler-ancestral.",
    ),
    click.option(
        "--guidance-passes",
        type=click.Choice(GUIDANCE_PASSES),
        show_default=_FROM_BUNDLE,
        help="How the model runs where guidance is on: with the prompt and the negative prompt "
        "one after the other, or batched, with both at once. That takes twice the memory and is "
        "faster on some devices.",
    ),
    click.option(
        "--context-length",
        type=int,
        metavar="N",
        show_default="all frames, or the most that the bundle takes",
        help="Frames in a window over the clip, as latents count them: what the model sees at "
        "once.",
    ),
    click.option(
        "--context-stride",
        type=int,
        metavar="N",
        show_default="half the context length",
        help="Frames from the start of a window to that of the next; fewer take longer and join "
        "more smoothly.",
    ),
)


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a generation, under the names of `VideoPipeline.generate`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
