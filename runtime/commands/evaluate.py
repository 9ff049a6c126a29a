"""`mutoscope evaluate`: does a clip hold still where it should, and stay what it is?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mutoscope.runtime.errors import MutoscopeError, ParameterError

if TYPE_CHECKING:
    from mutoscope.runtime.evaluation.report import Evaluation
    from mutoscope.runtime.evaluation.scene import U8

_EPILOG = """\b
Examples:
  mutoscope evaluate out.mp4
  mutoscope evaluate fast.mp4 slow.mp4 --reference best.mp4
  mutoscope evaluate long.mp4 --context-length 16 --save-plot long.png
"""


def read_joins(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...]:
    """Return the numbers in a list with commas, for click's `callback`."""
    if value is None:
        return ()
    try:
        return tuple(sorted({int(text) for text in value.split(",")}))
    except ValueError as err:
        raise click.BadParameter(f"{value!r} is not a list of frames: use 16,32") from err


@click.command(epilog=_EPILOG)
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...")
@click.option(
    "--reference",
    metavar="CLIP",
    help="Also compare each clip with this one of the same size: PSNR and SSIM.",
)
@click.option(
    "--joins",
    metavar="FRAMES",
    callback=read_joins,
    help="Frames, counted from 0, that begin a new part, e.g. 16,32. Each measure at joins is "
    "shown as a multiple of that elsewhere.",
)
@click.option(
    "--context-length",
    type=int,
    metavar="N",
    help="Take the starts of context windows of N frames as joins, as mutoscope generate makes "
    "them.",
)
@click.option(
    "--context-stride",
    type=int,
    metavar="N",
    show_default="half the context length",
    help="Frames from one context window to the next.",
)
@click.option(
    "--save-plot",
    "plot",
    metavar="FILE",
    help="Write a picture, .png: frames, and below them flicker and warping error.",
)
@click.option("--pairs", is_flag=True, help="With --json: all measures of each pair of frames.")
@click.option("--force", is_flag=True, help="Replace what is at FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def evaluate(
    clips: tuple[str, ...],
    reference: str | None,
    joins: tuple[int, ...],
    context_length: int | None,
    context_stride: int | None,
    plot: str | None,
    pairs: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Measure how steady clips are over time (needs mutoscope[evaluate]).

    CLIP is a file or folder that mutoscope generate wrote, or any other video. "flicker" is the
    mean change of the still background between neighbouring frames, in levels of 255; "warping
    error" the mean squared difference of each frame and the next one moved back by optical flow, of
    values from 0 to 1; "drift" how far the main object goes from what it was in the first quarter
    of the clip: its colour in CIE delta E, its area, and its shape as 1 - intersection over union.
    0 is best in all; - is where there is no background or no object. The camera must stand still
    for flicker and drift. The exit code is 1 if a clip cannot be measured; the others are shown.
    """
    _check_options(joins, context_length, context_stride, pairs=pairs, as_json=as_json)
    # Here, so that the help is there without OpenCV.
    from mutoscope.runtime.clip_files import load_clip
    from mutoscope.runtime.evaluation.plot import check_plot_output, save_plot
    from mutoscope.runtime.evaluation.report import (
        describe_evaluations,
        format_evaluations,
        format_joins,
    )

    target = None if plot is None else check_plot_output(plot, force=force)
    expected = None if reference is None else load_clip(reference)
    windows = None if context_length is None else (context_length, context_stride)
    evaluations: list[Evaluation] = []
    failed: dict[str, str] = {}
    for path in clips:
        try:
            evaluations.append(
                _evaluate_one(path, expected, joins, windows, keep_strip=target is not None)
            )
        except MutoscopeError as err:
            if len(clips) == 1:
                raise
            click.echo(f"error: {err}", err=True)
            failed[path] = str(err)
    if as_json:
        click.echo(json.dumps({**describe_evaluations(evaluations, pairs=pairs), "failed": failed}))
    elif evaluations:
        click.echo("\n".join(format_evaluations(evaluations)))
        if joins or windows:
            click.echo("\n" + "\n".join(format_joins(evaluations)))
    if target is not None and evaluations:
        save_plot(evaluations, target)
        click.echo(f"{target}: frames, flicker and warping error", err=True)
    if failed:
        raise ParameterError(
            f"{len(failed)} of {len(clips)} clips cannot be measured: {', '.join(failed)}"
        )


def _check_options(
    joins: Sequence[int],
    context_length: int | None,
    context_stride: int | None,
    *,
    pairs: bool,
    as_json: bool,
) -> None:
    """Raise for options that do not go together."""
    if joins and context_length is not None:
        raise click.UsageError("--joins and --context-length both name the joins: give one")
    if context_stride is not None and context_length is None:
        raise click.UsageError("--context-stride needs --context-length")
    if pairs and not as_json:
        raise click.UsageError("--pairs needs --json")


def _evaluate_one(
    path: str,
    reference: U8 | None,
    joins: Sequence[int],
    windows: tuple[int, int | None] | None,
    *,
    keep_strip: bool,
) -> Evaluation:
    """Measure one clip, whose frames are not kept; raises `ParameterError` with its name."""
    from mutoscope.runtime.clip_files import load_clip
    from mutoscope.runtime.evaluation.consistency import (
        check_clip,
        measure_consistency,
        measure_similarity,
    )
    from mutoscope.runtime.evaluation.joins import list_window_joins
    from mutoscope.runtime.evaluation.plot import draw_strip
    from mutoscope.runtime.evaluation.report import Evaluation

    frames = load_clip(path)
    num_frames, height, width, _ = frames.shape
    try:
        check_clip(frames)
        if windows is not None:
            length, stride = windows
            stride = max(1, length // 2) if stride is None else stride
            joins = list_window_joins(num_frames, length, stride)
        similarity = None if reference is None else measure_similarity(reference, frames)
        consistency = measure_consistency(frames)
        return Evaluation(
            *(path, num_frames, height, width, consistency, joins),
            consistency.compare_joins(joins) if joins else {},
            similarity,
            draw_strip(frames) if keep_strip else None,
        )
    except ParameterError as err:
        raise ParameterError(f"{path}: {err}") from err
    except MemoryError as err:
        raise ParameterError(
            f"{path}: to measure {num_frames} frames of {height} x {width} needs more memory than "
            "there is: use a shorter or smaller clip"
        ) from err
