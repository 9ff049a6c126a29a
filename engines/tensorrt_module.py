"""TensorRT and TensorRT for RTX as one: which module an engine name stands for, and its log.

Both have the same Python interface but for what is said where it is used. Neither is imported
before it is asked for: importing loads hundreds of megabytes of libraries.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, cast

from mutoscope.engines.errors import EngineError, join_lines
from mutoscope.engines.options import TENSORRT_MODULES

if TYPE_CHECKING:
    import tensorrt

TENSORRT_RTX = "tensorrt-rtx"
TITLES = {"tensorrt": "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}
_INSTALL_HINTS = {
    "tensorrt": "pip install tensorrt (on a Jetson: sudo apt install nvidia-jetpack, and a virtual "
    "environment with --system-site-packages)",
    TENSORRT_RTX: "pip install tensorrt-rtx-cu13 (tensorrt-rtx-cu12 for CUDA 12)",
}


def load_tensorrt(engine_name: str) -> tensorrt.Tensorrt:
    """Return the module of "tensorrt" or "tensorrt-rtx"; raises `EngineError` if it is absent."""
    if engine_name not in TENSORRT_MODULES:
        raise EngineError(
            f"engine is {engine_name!r}; it must be one of {', '.join(TENSORRT_MODULES)} here"
        )
    try:
        module = importlib.import_module(TENSORRT_MODULES[engine_name])
    # The bindings find their libraries by ctypes, which raises OSError.
    except (ImportError, OSError) as err:
        raise EngineError(
            f"engine {engine_name!r} cannot be imported ({join_lines(str(err))}): "
            f"{_INSTALL_HINTS[engine_name]}"
        ) from err
    return cast("tensorrt.Tensorrt", module)


def find_version(engine_name: str) -> str:
    """Return the version of the module, "10.3.0"; raises `EngineError` if it is absent."""
    return load_tensorrt(engine_name).__version__


@functools.cache
def _share_logger(trt: tensorrt.Tensorrt) -> tuple[list[str], tensorrt.ILogger]:
    """The errors of a module and its logger, which is kept as long as the process.

    TensorRT keeps a pointer to the first logger that it gets, and tells it what all others do.
    """
    errors = list[str]()

    class Logger(trt.ILogger):  # type: ignore[name-defined]  # known at run time only
        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(join_lines(message))

    return errors, Logger()


class ErrorLog:
    """The errors that TensorRT reports; `logger` is to be given to it, and prints nothing."""

    def __init__(self, trt: tensorrt.Tensorrt) -> None:
        """Forget the errors of this module so far, whoever had them."""
        self.errors, self.logger = _share_logger(trt)  # type: ignore[arg-type]  # of a module
        self.errors.clear()

    def check(self, what: str) -> None:
        """Raise `EngineError` if there are errors: "TensorRT 10.3.0 does not start: no driver"."""
        if self.errors:
            raise EngineError(f"{what}: {self.join()}")

    def join(self) -> str:
        """Return all errors in one line, each once."""
        return "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"


def describe_parser_errors(
    parser: tensorrt.OnnxParser | tensorrt.OnnxParserRefitter, log: ErrorLog
) -> str:
    """Return why a graph was not read, in one line."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [f"{error.node_operator()}: {join_lines(error.desc())}" for error in errors]
    return "; ".join(dict.fromkeys(reasons)) or log.join()
