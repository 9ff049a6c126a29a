"""Keep torch, diffusers and transformers from printing while the export uses them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY_LOGGERS = ("torch.onnx", "torch.export", "diffusers", "transformers", "onnxscript", "onnx_ir")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the libraries' warnings, log lines and progress bars; errors are raised as always.

    The warnings are about the libraries' own inner calls, and a user can do nothing about them.
    What matters of them is checked: weights that are missing, axes that became constants, results
    that differ.
    """
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    had_diffusers_bars = diffusers_logging.is_progress_bar_enabled()
    had_transformers_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.startswith(NOISY_LOGGERS)
    ] + [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_diffusers_bars:
            diffusers_logging.enable_progress_bar()
        if had_transformers_bars:
            transformers_logging.enable_progress_bar()
