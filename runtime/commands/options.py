"""Options that several commands have, and how their text is read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import click

from mutoscope.engines.onnxruntime_providers import EXECUTION_PROVIDERS
from mutoscope.engines.options import (
    DEFAULT_ENGINE,
    DEFAULT_EXECUTION_PROVIDER,
    ENGINES,
    MEMORY_MODES,
    EngineOptions,
    Memory,
)
from mutoscope.runtime.errors import ParameterError

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Return a size in bytes: "2GiB" and "2G" are 2 * 2^30, "2GB" is 2 * 10^9, "800" is 800.

    Raises:
        ParameterError: It is not a size above 0.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ParameterError(
            f"{text!r} is not a size in bytes: use for example 2GiB, 800MB or 1.5G"
        )
    number, unit = match[1], (match[2] or "").lower()
    # As everywhere: K, M, G alone and KiB, MiB, GiB are powers of 1024, KB, MB, GB of 1000.
    decimal = len(unit) == 1 and text.strip().lower().endswith("b")
    size = round(float(number) * (1000 if decimal else 1024) ** _POWERS[unit[:1]])
    if size < 1:
        raise ParameterError(f"{text!r} must be a size above 0: use for example 2GiB")
    return size


def read_bytes_option(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | None:
    """Return the value of an option that is a size, for click's `callback`."""
    if value is None:
        return None
    try:
        return parse_bytes(value)
    except ParameterError as err:
        raise click.BadParameter(str(err)) from err


def read_names(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Return the names in a list with commas, for click's `callback`."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


memory_limit_option = click.option(
    "--memory-limit",
    "memory_limit_bytes",
    metavar="SIZE",
    callback=read_bytes_option,
    show_default="none",
    help="What the process may use while it decodes, e.g. 2GiB or 800MB. Meant with --memory low.",
)

VARIANT_HELP = "What the graphs compute in, as mutoscope inspect lists them: float32, float16, int8"
variant_option = click.option(
    "--variant",
    metavar="NAME",
    show_default="the bundle's",
    help=f"{VARIANT_HELP}. Components that do not have it run their default.",
)

_GRAPH_ENGINE_HELP = (
    "What runs the graphs: onnxruntime, openvino:f32 (or openvino) or openvino:bf16, which is "
    "faster and less exact, and what OpenVINO itself takes where the processor has it. Both need "
    "mutoscope[openvino] and compile for each size."
)


def _make_engine_option(names: Sequence[str], text: str) -> Callable[[Any], Any]:
    return click.option(
        "--engine",
        metavar="NAME",
        type=click.Choice(names),
        default=DEFAULT_ENGINE,
        show_default=True,
        help=text,
    )


# Of what runs a graph as it is, with nothing built before.
engine_option = _make_engine_option(
    [*(name for name in ENGINES if not EngineOptions(name).runs_plans), "openvino"],
    _GRAPH_ENGINE_HELP,
)
_any_engine_option = _make_engine_option(
    [*ENGINES, "openvino"],
    f"{_GRAPH_ENGINE_HELP} tensorrt and tensorrt-rtx run what was built for this GPU and compared "
    "here (see the commands build and verify). auto takes for each component the fastest of these, "
    "and onnxruntime for the rest.",
)
execution_provider_option = click.option(
    "--execution-provider",
    metavar="NAME",
    default=DEFAULT_EXECUTION_PROVIDER,
    show_default=True,
    help=f"What onnxruntime runs on: {', '.join(EXECUTION_PROVIDERS)}, or any other that this "
    "build of onnxruntime has.",
)
num_threads_option = click.option(
    "--num-threads",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="one for each core",
    help="Threads for one operator on the CPU.",
)


def read_pairs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an option that is KEY=VALUE, for click's `callback`."""
    pairs: dict[str, str] = {}
    for text in values:
        key, separator, value = (part.strip() for part in text.partition("="))
        if not (key and separator and value):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE: use for example device_id=1")
        if key in pairs:
            raise click.BadParameter(f"{key!r} is given twice: give it once")
        pairs[key] = value
    return tuple(pairs.items())


_DEVICE_OPTIONS = (
    click.option(
        "--allow-cpu-nodes",
        is_flag=True,
        help="Let onnxruntime run on the CPU what the execution provider does not take. Otherwise "
        "that is an error, unless it is only the arithmetic of shapes.",
    ),
    click.option(
        "--provider-option",
        "provider_options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=read_pairs,
        help="An option of onnxruntime's execution provider, such as device_id=1, passed on as it "
        "is. Can be given again.",
    ),
    click.option(
        "--cuda-graphs",
        is_flag=True,
        help="With tensorrt and tensorrt-rtx: record the run of each size, and play it again. "
        "Faster where a graph is many small kernels.",
    ),
    click.option(
        "--weight-budget",
        "weight_budget_bytes",
        metavar="SIZE",
        callback=read_bytes_option,
        show_default="all weights",
        help="With an engine built with --weight-streaming: what its weights may take on the GPU, "
        "e.g. 1GiB. Less is slower.",
    ),
)


def engine_options(*, default_memory: Memory = "normal") -> Callable[[Any], Any]:
    """Return a decorator: options of what runs the graphs, as one argument `engine_options`.

    Args:
        default_memory: What --memory is where it is not given.
    """
    memory_option = click.option(
        "--memory",
        type=click.Choice(MEMORY_MODES),
        default=default_memory,
        show_default=True,
        help="low keeps one component in memory at a time and, with onnxruntime, its weights in "
        "the file where they can be dropped; it is slower, and each video loads them again.",
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*arguments: Any, **options: Any) -> Any:
            chosen = {field.name: options.pop(field.name) for field in fields(EngineOptions)}
            return command(*arguments, engine_options=EngineOptions(**chosen), **options)

        order = (_any_engine_option, execution_provider_option, num_threads_option, memory_option)
        for option in reversed((*order, *_DEVICE_OPTIONS)):
            run = option(run)
        return run

    return decorate
