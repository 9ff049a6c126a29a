"""Find libmutoscope, declare its functions, and turn its statuses into exceptions."""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from mutoscope.runtime.errors import (
    BundleError,
    CancelledError,
    EngineError,
    ExecutionProviderError,
    MissingExtraError,
    MutoscopeError,
    ParameterError,
    ScheduleError,
)
from mutoscope.runtime.native.arguments import decode_text
from mutoscope.runtime.native.structs import (
    BundleInfo,
    ConditionInfo,
    GenerateParams,
    PipelineParams,
    Result,
    Settings,
)

# MUTOSCOPE_ABI_VERSION of the header that this package was written for.
ABI_VERSION = 1
LIBRARY_VARIABLE = "MUTOSCOPE_LIBRARY"
_SONAME = f"libmutoscope.so.{ABI_VERSION}"
# What `make native` makes.
_BUILT = Path(__file__).resolve().parents[2] / "build" / "native" / "libmutoscope.so"

OK = 0
ERROR_OUT_OF_MEMORY = -8
_EXCEPTIONS: dict[int, type[MutoscopeError]] = {
    -2: ParameterError,
    -3: BundleError,
    -4: ScheduleError,
    -5: EngineError,
    -6: ExecutionProviderError,
    -7: CancelledError,
}

_PIPELINE = c_void_p
_LIST = POINTER(POINTER(c_char_p))
# For each function what it returns, and what it takes.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mutoscope_version": (c_char_p, []),
    "mutoscope_abi_version": (c_uint32, []),
    "mutoscope_status_name": (c_char_p, [c_int32]),
    "mutoscope_last_error": (c_char_p, []),
    "mutoscope_pipeline_params_init": (c_int32, [POINTER(PipelineParams), c_size_t]),
    "mutoscope_generate_params_init": (c_int32, [POINTER(GenerateParams), c_size_t]),
    "mutoscope_bundle_info_init": (c_int32, [POINTER(BundleInfo), c_size_t]),
    "mutoscope_condition_info_init": (c_int32, [POINTER(ConditionInfo), c_size_t]),
    "mutoscope_settings_init": (c_int32, [POINTER(Settings), c_size_t]),
    "mutoscope_result_init": (c_int32, [POINTER(Result), c_size_t]),
    "mutoscope_pipeline_open": (c_int32, [POINTER(_PIPELINE), c_char_p, POINTER(PipelineParams)]),
    "mutoscope_pipeline_close": (None, [_PIPELINE]),
    "mutoscope_pipeline_load": (c_int32, [_PIPELINE]),
    "mutoscope_pipeline_unload": (c_int32, [_PIPELINE]),
    "mutoscope_pipeline_info": (c_int32, [POINTER(BundleInfo), _PIPELINE]),
    "mutoscope_pipeline_list": (c_int32, [_LIST, POINTER(c_size_t), _PIPELINE, c_int32]),
    "mutoscope_pipeline_steps": (
        c_int32,
        [POINTER(POINTER(c_int32)), POINTER(c_size_t), _PIPELINE, c_char_p],
    ),
    "mutoscope_pipeline_condition": (c_int32, [POINTER(ConditionInfo), _PIPELINE, c_char_p]),
    "mutoscope_pipeline_variant": (c_int32, [POINTER(c_char_p), _PIPELINE, c_char_p]),
    "mutoscope_tokenize": (
        c_int32,
        [POINTER(c_int64), c_size_t, POINTER(c_size_t), _PIPELINE, c_char_p, c_char_p, c_size_t],
    ),
    "mutoscope_resolve": (c_int32, [POINTER(Settings), _PIPELINE, POINTER(GenerateParams)]),
    "mutoscope_generate": (
        c_int32,
        [POINTER(Result), POINTER(c_uint8), c_uint64, _PIPELINE, POINTER(GenerateParams)],
    ),
    "mutoscope_cancel": (c_int32, [_PIPELINE]),
}


class NativeError(MutoscopeError):
    """A call of libmutoscope is wrong, or it is busy, or has a fault of its own."""


class Library:
    """libmutoscope with its functions declared; `functions` is the ctypes library."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Load the library.

        Args:
            path: The file. None takes that of the environment variable MUTOSCOPE_LIBRARY, else one
                that was built by `make native` in the checkout, else the one that is installed.

        Raises:
            MissingExtraError: There is none, or it is for another version of mutoscope.h.
        """
        # Any: ctypes finds functions by name when they are asked for.
        self.functions: Any = _load(path)
        for name, (restype, argtypes) in FUNCTIONS.items():
            try:
                function = getattr(self.functions, name)
            except AttributeError as err:
                raise MissingExtraError(
                    f"{self.path} has no {name}: build it again from this version"
                ) from err
            function.restype, function.argtypes = restype, argtypes
        found = self.functions.mutoscope_abi_version()
        if found != ABI_VERSION:
            raise MissingExtraError(
                f"{self.path} has ABI version {found}; this mutoscope needs {ABI_VERSION}: build "
                "it again from this version"
            )

    @property
    def path(self) -> str:
        """What was loaded."""
        return str(self.functions._name)

    @property
    def version(self) -> str:
        """The version of the library: "0.1.0"."""
        return decode_text(self.functions.mutoscope_version())

    def check(self, status: int) -> None:
        """Raise the exception of a status that is not MUTOSCOPE_OK, with the library's message.

        Raises:
            MutoscopeError: The class of the runtime that the status stands for; NativeError where
                there is none.
            MemoryError: MUTOSCOPE_ERROR_OUT_OF_MEMORY.
        """
        if status == OK:
            return
        message = decode_text(self.functions.mutoscope_last_error())
        if status == ERROR_OUT_OF_MEMORY:
            raise MemoryError(message)
        if status in _EXCEPTIONS:
            raise _EXCEPTIONS[status](message)
        name = decode_text(self.functions.mutoscope_status_name(status))
        raise NativeError(f"{name}: {message}")


def _load(path: str | os.PathLike[str] | None) -> ctypes.CDLL:
    named = os.environ.get(LIBRARY_VARIABLE) if path is None else os.fspath(path)
    built = [str(_BUILT)] if _BUILT.is_file() else []
    candidates = [named] if named else [*built, _SONAME]
    reasons = []
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError as err:
            reasons.append(str(err))
    raise MissingExtraError(
        f"libmutoscope cannot be loaded ({reasons[-1]}): build it with make native in a "
        f"checkout, or set {LIBRARY_VARIABLE} to the path of libmutoscope.so"
    )
