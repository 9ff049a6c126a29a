"""A bundle that libmutoscope runs; the names are those of `mutoscope.runtime.VideoPipeline`."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.native.arguments import (
    Arguments,
    GenerateArguments,
    decode_text,
    encode_text,
    fill_generate_params,
    fill_pipeline_params,
)
from mutoscope.runtime.native.library import Library
from mutoscope.runtime.native.structs import (
    BundleInfo,
    ConditionInfo,
    FrameCallback,
    GenerateParams,
    PipelineParams,
    ProgressCallback,
    Result,
    Settings,
)
from mutoscope.runtime.timings import Timings

if TYPE_CHECKING:
    from typing_extensions import Unpack

LISTS = ("schedulers", "variants", "components", "conditions", "tokenizers", "prompt_embeds")
STAGES = ("encoding", "denoising", "decoding")
CONTINUE, CANCEL = 0, 1


@dataclass(frozen=True)
class NativeProgress:
    """Where a generation is.

    Attributes:
        stage: One of STAGES.
        num_done: Parts of the stage that are done.
        num_in_all: Parts that it has.
        seconds_since_start: Since generate was called.
        latents: While denoising, a copy of the latents now, float32 [1, C, F, h, w]; else None.
    """

    stage: str
    num_done: int
    num_in_all: int
    seconds_since_start: float
    latents: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class NativeVideo:
    """One clip, as `mutoscope.runtime.Video` has it, and the memory of the process.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB.
        frame_rate: Frames per second.
        seed: The one that was given, or drawn.
        timings: Where the time went.
        resident_bytes: What the process has in memory after it.
        peak_resident_bytes: What it had at most.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    frame_rate: float
    seed: int
    timings: Timings = field(repr=False)
    resident_bytes: int
    peak_resident_bytes: int


OnProgress = Callable[[NativeProgress], object]
# The number of the frame, from 0, and a copy of it: uint8 [H, W, 3].
OnFrame = Callable[[int, NDArray[np.uint8]], object]


class NativePipeline:
    """A bundle that is ready to generate. Threads may call `cancel`, one at a time the rest."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        """Take a handle of mutoscope_pipeline_open; see `open`."""
        self._library = library
        self._handle = handle
        self._close = weakref.finalize(self, library.functions.mutoscope_pipeline_close, handle)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        library: Library | None = None,
        execution_provider: str = "cpu",
        num_threads: int | None = None,
        memory: str = "normal",
        memory_limit_bytes: int | None = None,
        variant: str | None = None,
        allow_cpu_nodes: bool = False,
        provider_options: Mapping[str, str] | None = None,
    ) -> NativePipeline:
        """Open the bundle in a folder; `VideoPipeline.open` says what the arguments are.

        Args:
            path: The folder.
            library: What runs it; None loads it from where `Library` finds it.
            execution_provider: As onnxruntime has it.
            num_threads: Threads for one operator; None takes one for each core.
            memory: "normal" or "low".
            memory_limit_bytes: What the process may use while it decodes; None for no limit.
            variant: What the graphs compute in.
            allow_cpu_nodes: Whether the CPU may run what another execution provider does not take.
            provider_options: onnxruntime's own options of the execution provider.

        Raises:
            MutoscopeError: As `VideoPipeline.open`; MissingExtraError if there is no library.
        """
        library = library or Library()
        params, arguments = PipelineParams(), Arguments()
        functions = library.functions
        library.check(functions.mutoscope_pipeline_params_init(params, ctypes.sizeof(params)))
        fill_pipeline_params(
            params,
            arguments,
            execution_provider=execution_provider,
            num_threads=num_threads,
            memory=memory,
            memory_limit_bytes=memory_limit_bytes,
            variant=variant,
            allow_cpu_nodes=allow_cpu_nodes,
            provider_options=provider_options,
        )
        handle = c_void_p()
        library.check(functions.mutoscope_pipeline_open(byref(handle), os.fsencode(path), params))
        return cls(library, handle)

    def __enter__(self) -> NativePipeline:
        """Return the pipeline itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the pipeline."""
        self.close()

    def close(self) -> None:
        """Free all memory; the pipeline is of no use afterwards."""
        self._close()
        self._handle = c_void_p()

    def load(self) -> None:
        """Load all components now."""
        self._call("pipeline_load", self._handle)

    def unload(self) -> None:
        """Free what was loaded; the next generation loads again."""
        self._call("pipeline_unload", self._handle)

    def cancel(self) -> None:
        """Stop the generation that runs in another thread."""
        self._call("cancel", self._handle)

    def info(self) -> dict[str, Any]:
        """Return what the bundle says of itself, by the names of mutoscope_bundle_info."""
        info = self._make("bundle_info", BundleInfo())
        self._call("pipeline_info", info, self._handle)
        return _read_struct(info)

    def condition(self, name: str) -> dict[str, Any]:
        """Return a number that the denoiser takes, by the names of mutoscope_condition_info."""
        info = self._make("condition_info", ConditionInfo())
        self._call("pipeline_condition", info, self._handle, encode_text(name))
        return _read_struct(info)

    def list_names(self, kind: str) -> tuple[str, ...]:
        """Return the names of one of LISTS."""
        names, count = POINTER(c_char_p)(), c_size_t()
        self._call("pipeline_list", byref(names), byref(count), self._handle, LISTS.index(kind))
        return tuple(decode_text(names[number]) for number in range(count.value))

    def list_steps(self, scheduler: str | None = None) -> tuple[int, ...]:
        """Return the numbers of steps that there are schedule tables for."""
        steps, count = POINTER(c_int32)(), c_size_t()
        name = None if scheduler is None else encode_text(scheduler)
        self._call("pipeline_steps", byref(steps), byref(count), self._handle, name)
        return tuple(steps[number] for number in range(count.value))

    def find_variant(self, component: str) -> str:
        """Return the variant that a component runs."""
        variant = c_char_p()
        self._call("pipeline_variant", byref(variant), self._handle, encode_text(component))
        return decode_text(variant.value)

    def tokenize(self, text: str | bytes, tokenizer: str | None = None) -> list[int]:
        """Return the token ids of a text (bytes: UTF-8), neither cut nor padded."""
        data = encode_text(text) if isinstance(text, str) else text
        name = None if tokenizer is None else encode_text(tokenizer)
        # No tokenizer that is known gives more ids than there are bytes, but for those it adds.
        capacity, count = len(data) + 8, c_size_t()
        while True:
            ids = (c_int64 * capacity)()
            self._call("tokenize", ids, capacity, byref(count), self._handle, name, data, len(data))
            if count.value <= capacity:
                return list(ids[: count.value])
            capacity = count.value

    def resolve(
        self, prompt: str | None = None, **given: Unpack[GenerateArguments]
    ) -> dict[str, Any]:
        """Return what `generate` would make of these, by the names of mutoscope_settings."""
        params, _arguments = self._make_params(prompt, given)
        settings = self._make("settings", Settings())
        self._call("resolve", settings, self._handle, params)
        return _read_struct(settings)

    def generate(
        self,
        prompt: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_frame: OnFrame | None = None,
        **given: Unpack[GenerateArguments],
    ) -> NativeVideo:
        """Return a video.

        Args:
            prompt: The text.
            on_progress: Called after each part of the work; returns False to cancel.
            on_frame: Called with the number of each frame and the frame, as soon as it is decoded;
                returns False to cancel.
            given: The other arguments of `VideoPipeline.generate`; see `GenerateArguments`.

        Raises:
            MutoscopeError: As `VideoPipeline.generate`; NativeError if it is generating already.
            BaseException: What a callback raised; KeyboardInterrupt after the part of the work in
                which Ctrl-C was pressed.
        """
        params, _arguments = self._make_params(prompt, given)
        settings = self._make("settings", Settings())
        self._call("resolve", settings, self._handle, params)
        shape = (settings.num_frames, settings.height, settings.width, 3)
        frames = np.zeros(shape, dtype=np.uint8)
        raised: list[BaseException] = []
        # Always there: Python handles signals when Python code runs.
        params.progress_callback = _make_progress_callback(on_progress, raised)
        if on_frame is not None:
            params.frame_callback = _make_frame_callback(on_frame, raised)
        result = self._make("result", Result())
        with _catch_interrupt(raised):
            status = self._library.functions.mutoscope_generate(
                result, frames.ctypes.data_as(POINTER(c_uint8)), frames.nbytes, self._handle, params
            )
        if raised:
            raise raised[0]
        self._library.check(status)
        seconds = {n: v for n, v in _read_struct(result).items() if n.startswith("seconds_")}
        return NativeVideo(
            frames=frames,
            frame_rate=result.frame_rate,
            seed=result.seed,
            timings=Timings(**seconds),
            resident_bytes=result.resident_bytes,
            peak_resident_bytes=result.peak_resident_bytes,
        )

    def _make_params(
        self, prompt: str | None, given: GenerateArguments
    ) -> tuple[GenerateParams, Arguments]:
        """The struct, and what must live as long."""
        params, arguments = self._make("generate_params", GenerateParams()), Arguments()
        fill_generate_params(params, arguments, prompt, given, self.info())
        return params, arguments

    def _make(self, name: str, struct: Any) -> Any:
        """The struct, initialised."""
        self._call(f"{name}_init", struct, ctypes.sizeof(struct))
        return struct

    def _call(self, name: str, *values: object) -> None:
        self._library.check(getattr(self._library.functions, f"mutoscope_{name}")(*values))


def _read_struct(struct: ctypes.Structure) -> dict[str, Any]:
    """The fields of a struct by name, without struct_size; strings are copied."""
    values: dict[str, Any] = {}
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, ctypes.Structure):
            value = _read_struct(value)
        values[name] = decode_text(value) if isinstance(value, bytes) else value
    values.pop("struct_size", None)
    return values


@contextmanager
def _catch_interrupt(raised: list[BaseException]) -> Iterator[None]:
    """Let Ctrl-C cancel at the next callback; what its handler raises is put into the list.

    It must not be raised by the handler: it would be lost where C calls Python, before any line of
    the callback that could catch it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, _catch(handler, raised))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _make_progress_callback(on_progress: OnProgress | None, raised: list[BaseException]) -> Any:
    def call(pointer: Any, _user_data: object) -> int:
        if on_progress is None:
            return CONTINUE
        progress = pointer.contents
        latents = None
        if progress.latents:
            shape = tuple(progress.latents_shape[axis] for axis in range(5))
            latents = np.ctypeslib.as_array(progress.latents, shape).copy()
        shown = NativeProgress(
            STAGES[progress.stage],
            progress.num_done,
            progress.num_in_all,
            progress.seconds_since_start,
            latents,
        )
        return CANCEL if on_progress(shown) is False else CONTINUE

    return ProgressCallback(_catch(call, raised))


def _make_frame_callback(on_frame: OnFrame, raised: list[BaseException]) -> Any:
    def call(pointer: Any, _user_data: object) -> int:
        frame = pointer.contents
        rows = np.ctypeslib.as_array(frame.pixels, (frame.height, frame.row_bytes))
        pixels = rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3).copy()
        return CANCEL if on_frame(frame.frame_index, pixels) is False else CONTINUE

    return FrameCallback(_catch(call, raised))


def _catch(
    call: Callable[[Any, Any], Any], raised: list[BaseException]
) -> Callable[[Any, Any], Any]:
    """The callback, which cancels where one has raised: an exception cannot pass through C."""

    def run(first: Any, second: Any) -> Any:
        try:
            return CANCEL if raised else call(first, second)
        except BaseException as err:
            raised.append(err)
            return CANCEL

    return run
