"""Prompts that a checkpoint states for its calibration, in an optional mutoscope_prompts.txt.

A small model, or one that was tuned for one subject, is calibrated best on what it was trained for.
The file has one prompt on each line; lines that begin with # are passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import PROMPTS_PATH, read_prompts
from mutoscope.export.errors import CheckpointError
from mutoscope.runtime.manifest import TokenizerRecord
from mutoscope.runtime.tokenizer import TextTokenizer

PROMPTS_NAME = "mutoscope_prompts.txt"


def export_calibration_prompts(
    folder: Path, tokenizers: Mapping[str, TokenizerRecord], bundle: Path
) -> None:
    """Write the checkpoint's prompts into a bundle, if it has any.

    Args:
        folder: That of the checkpoint.
        tokenizers: Those of the bundle, which the prompts must fit; they are written already.
        bundle: The folder of the bundle.

    Raises:
        CheckpointError: The file cannot be read, or one of its prompts cannot be used.
    """
    source, target = folder / PROMPTS_NAME, bundle / PROMPTS_PATH
    if not source.is_file():
        return
    if not tokenizers:
        raise CheckpointError(f"{PROMPTS_NAME} has prompts, but this model takes none: remove it")
    try:
        read_prompts(
            source, [TextTokenizer(bundle / record.file, record) for record in tokenizers.values()]
        )
    except CalibrationError as err:
        raise CheckpointError(str(err)) from err
    target.parent.mkdir()
    shutil.copyfile(source, target)
