"""A command as the export's are: it imports torch where it is defined."""

import click
import torch


@click.command()
@click.argument("name")
def command(name: str) -> None:
    """Say the version of torch."""
    click.echo(torch.__version__)
