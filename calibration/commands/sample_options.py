"""Options of the commands that make clips of samples: what the clips are made of."""

from __future__ import annotations

from pathlib import Path

import click

prompts_option = click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    show_default="the bundle's, or built-in ones",
    help="A text file with one prompt on each line.",
)
images_option = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What clips start from, for a bundle that takes an image. May be given again.",
)
