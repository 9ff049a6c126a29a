"""Python's values as the structs of mutoscope.h take them."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_char_p, c_int64, c_void_p, pointer
from operator import index
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.options import check_threads_and_memory
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.native.structs import Array, GenerateParams, Number, PipelineParams

AnyArray = NDArray[Any]
# One array, or several by name.
Arrays = AnyArray | Mapping[str, AnyArray]

MEMORY_MODES = {"normal": 0, "low": 1}
GUIDANCE_PASSES = {"separate": 0, "batched": 1}
# Of the bytes of this machine: numpy has arrays of the other order under the same names.
DTYPES: dict[np.dtype[Any], int] = {
    np.dtype("float32"): 0,
    np.dtype("int64"): 1,
    np.dtype("uint8"): 2,
}
SEED_RANDOM = 2**64 - 1

_INT32_MAX = 2**31 - 1
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1
_NUMBERS = ("guidance_scale", "min_guidance_scale", "frame_rate")
_SIZES = ("num_frames", "height", "width", "num_inference_steps")


def encode_text(text: str) -> bytes:
    """UTF-8; a lone surrogate becomes bytes that are none, for the library to refuse."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(text: bytes | None) -> str:
    """A text of the library; what is not UTF-8 in it is shown as escapes."""
    return (text or b"").decode("utf-8", "backslashreplace")


class Arguments:
    """What the pointers of a struct point to: it is kept as long as this object."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._kept: list[object] = []

    def keep(self, value: object) -> None:
        """Keep a value."""
        self._kept.append(value)

    def make_text(self, name: str, text: str | None) -> bytes | None:
        """As `encode_text`; raises `ParameterError` for what is no text of C."""
        if text is None:
            return None
        if not isinstance(text, str):
            raise ParameterError(f"{name} is a {type(text).__name__}; it must be a string")
        if "\0" in text:
            raise ParameterError(f"{name} has a zero character, where C ends a text: leave it out")
        return encode_text(text)

    def make_texts(self, texts: list[str]) -> Any:
        """An array of strings."""
        array = (c_char_p * len(texts))(*(encode_text(text) for text in texts))
        self.keep(array)
        return array

    def make_array(self, name: str, array: AnyArray) -> Array:
        """A mutoscope_array of a numpy array, of which it has a copy only if it has gaps."""
        if not isinstance(array, np.ndarray):
            raise ParameterError(f"{name} is a {type(array).__name__}; it must be a numpy array")
        if array.dtype not in DTYPES:
            known = ", ".join(dtype.name for dtype in DTYPES)
            raise ParameterError(
                f"{name} is {array.dtype}{list(array.shape)}; it must be one of {known}"
            )
        data = np.ascontiguousarray(array).reshape(array.shape)
        shape = (c_int64 * data.ndim)(*data.shape)
        self.keep((data, shape))
        return Array(
            encode_text(name), c_void_p(data.ctypes.data), shape, data.ndim, DTYPES[data.dtype]
        )

    def make_arrays(self, arrays: Mapping[str, Arrays | None]) -> tuple[Any, int]:
        """An array of mutoscope_array, and its length; a mapping among them has own names."""
        named: dict[str, AnyArray] = {}
        for name, given in arrays.items():
            if given is not None:
                named |= dict(given) if isinstance(given, Mapping) else {name: given}
        if not named:
            return None, 0
        made = (Array * len(named))(*(self.make_array(n, a) for n, a in named.items()))
        self.keep(made)
        return made, len(named)

    def make_numbers(self, numbers: Mapping[str, float] | None) -> tuple[Any, int]:
        """An array of mutoscope_number, and its length."""
        if not numbers:
            return None, 0
        made = (Number * len(numbers))(
            *(Number(encode_text(n), _read_number(f"condition {n}", v)) for n, v in numbers.items())
        )
        self.keep(made)
        return made, len(numbers)


def fill_pipeline_params(
    params: PipelineParams,
    arguments: Arguments,
    *,
    execution_provider: str,
    num_threads: int | None,
    memory: str,
    memory_limit_bytes: int | None,
    variant: str | None,
    allow_cpu_nodes: bool,
    provider_options: Mapping[str, str] | None,
) -> None:
    """Fill a struct that is initialised; raises `EngineError` or `ParameterError`."""
    if num_threads is not None:
        num_threads = _check_size("num_threads", _read_whole("num_threads", num_threads, 1))
    check_threads_and_memory(num_threads, memory)
    options = dict(provider_options or {})
    params.num_threads = num_threads or 0
    params.memory = MEMORY_MODES[memory]
    params.allow_cpu_nodes = int(allow_cpu_nodes)
    params.execution_provider = arguments.make_text("execution_provider", execution_provider)
    params.variant = arguments.make_text("variant", variant)
    params.provider_option_keys = arguments.make_texts(list(options))
    params.provider_option_values = arguments.make_texts(list(options.values()))
    params.num_provider_options = len(options)
    if memory_limit_bytes is not None:
        if not 0 < memory_limit_bytes <= _UINT64_MAX:
            raise ParameterError(f"memory_limit_bytes is {memory_limit_bytes}; it must be above 0")
        params.memory_limit_bytes = memory_limit_bytes


class GenerateArguments(TypedDict, total=False):
    """What `NativePipeline.generate` takes beside the prompt; `VideoPipeline.generate` says what.

    Not there: prompt_ids and negative_prompt_ids, token ids int64 [1, S] by the name of their
    tokenizer, in place of a text. An image is uint8 [H, W, 3] RGB.
    """

    image: AnyArray | None
    negative_prompt: str | None
    prompt_ids: Arrays | None
    negative_prompt_ids: Arrays | None
    prompt_embeds: Arrays | None
    negative_prompt_embeds: Arrays | None
    latents: AnyArray | None
    seed: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    min_guidance_scale: float | None
    num_frames: int | None
    height: int | None
    width: int | None
    frame_rate: float | None
    conditions: Mapping[str, float] | None
    scheduler: str | None
    guidance_passes: str | None
    context_length: int | None
    context_stride: int | None


def fill_generate_params(
    params: GenerateParams,
    arguments: Arguments,
    prompt: str | None,
    given: GenerateArguments,
    defaults: Mapping[str, Any],
) -> None:
    """Fill a struct that is initialised; raises `ParameterError` for what has no form in C.

    The defaults are those of the bundle by name: messages offer them.
    """
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    passes = values.pop("guidance_passes", None)
    if passes is not None:
        params.guidance_passes = _find_guidance_passes(passes)
    params.prompt = arguments.make_text("prompt", prompt)
    for name in ("negative_prompt", "scheduler"):
        setattr(params, name, arguments.make_text(name, values.pop(name, None)))
    for name in ("prompt", "negative_prompt"):
        ids, embeds = values.pop(f"{name}_ids", None), values.pop(f"{name}_embeds", None)
        made, count = arguments.make_arrays({"input_ids": ids, "prompt_embeds": embeds})
        setattr(params, f"{name}_inputs", made)
        setattr(params, f"num_{name}_inputs", count)
    for name in ("image", "latents"):
        if name in values:
            array = arguments.make_array(name, values.pop(name))
            setattr(params, name, pointer(array))
    params.conditions, params.num_conditions = arguments.make_numbers(values.pop("conditions", {}))
    if "seed" in values:
        params.seed = _check_seed(values.pop("seed"))
    for name, value in values.items():
        if name not in GenerateArguments.__annotations__:
            raise TypeError(f"generate has no argument {name}")
        if name in _NUMBERS:
            checked = _read_number(name, value)
        else:
            default = defaults[name] if name in _SIZES else 1
            checked = _check_size(name, _read_whole(name, value, default))
        if checked == 0:
            raise ParameterError(f"{name} is 0, which is the bundle's default in C: leave it out")
        setattr(params, name, checked)


def _find_guidance_passes(passes: str) -> int:
    """As C numbers them; raises `ParameterError`."""
    if passes not in GUIDANCE_PASSES:
        raise ParameterError(
            f"guidance_passes is {passes!r}; it must be one of {', '.join(GUIDANCE_PASSES)}: use "
            "separate"
        )
    return GUIDANCE_PASSES[passes]


def _check_seed(value: object) -> int:
    """A seed that means itself; raises `ParameterError`."""
    seed = _read_whole("seed", value, 0)
    if not 0 <= seed <= SEED_RANDOM:
        raise ParameterError(f"seed is {seed}; it must be from 0 to {SEED_RANDOM}: use 0")
    # The one that C draws for; its noise is that of its low 32 bits.
    return _UINT32_MAX if seed == SEED_RANDOM else seed


def _check_size(name: str, value: int) -> int:
    """A whole number that fits into C's; raises `ParameterError`."""
    if abs(value) > _INT32_MAX:
        raise ParameterError(f"{name} is {value}; it must be at most {_INT32_MAX}")
    return value


def _read_whole(name: str, value: Any, default: object) -> int:
    """As `mutoscope.runtime.settings` reads it; raises `ParameterError`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ParameterError(f"{name} is {value!r}; it must be a whole number: use {default}")
    return index(value)


def _read_number(name: str, value: Any) -> float:
    """As `mutoscope.runtime.settings` reads it; raises `ParameterError`."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as err:
        raise ParameterError(f"{name} is {value!r}; it must be a number") from err
