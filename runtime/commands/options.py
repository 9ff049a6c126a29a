"""Options that several commands have, and how their text is read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from mutoscope.engines.onnxruntime_engine import EXECUTION_PROVIDERS
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

engine_option = click.option(
    "--engine",
    metavar="NAME",
    type=click.Choice([*ENGINES, "openvino"]),
    default=DEFAULT_ENGINE,
    show_default=True,
    help="What runs the graphs: onnxruntime, openvino:f32 (or openvino) or openvino:bf16, which is "
    "faster and less exact, and what OpenVINO itself takes where the processor has it. Both need "
    "mutoscope[openvino] and compile for each size.",
)
execution_provider_option = click.option(
    "--execution-provider",
    metavar="NAME",
    default=DEFAULT_EXECUTION_PROVIDER,
    show_default=True,
    help=f"What onnxruntime runs on: {', '.join(EXECUTION_PROVIDERS)}.",
)
num_threads_option = click.option(
    "--num-threads",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="one for each core",
    help="Threads for one operator on the CPU.",
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
        def run(
            *arguments: Any,
            engine: str,
            execution_provider: str,
            num_threads: int | None,
            memory: Memory,
            **options: Any,
        ) -> Any:
            chosen = EngineOptions(engine, execution_provider, num_threads, memory)
            return command(*arguments, engine_options=chosen, **options)

        with_memory = memory_option(run)
        return engine_option(execution_provider_option(num_threads_option(with_memory)))

    return decorate
