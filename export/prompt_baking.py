"""Bake prompts into a bundle: what its text encoders make of them, for devices without those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors.numpy import save_file

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.samples import PROMPTS_PATH as CALIBRATION_PROMPTS_PATH
from mutoscope.calibration.samples import read_prompts
from mutoscope.engines.options import EngineOptions
from mutoscope.export.families.contract import FamilyExport
from mutoscope.runtime.baked_prompts import FORMAT, FORMAT_NAME, PROMPTS_PATH, TEXTS
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.bundle_writer import make_file_record
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import ConditionEncoder
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import Manifest, TokenizerRecord
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.tokenizer import TextTokenizer

# What families call their text encoders, with anything after it.
_TEXT_ENCODER = "text_encoder"


def check_baking(prompts: str | Path | None, *, drop_text_encoder: bool) -> None:
    """Raise `ParameterError` for a file of prompts that cannot be baked; for use before the work.

    Whether the prompts fit is known only with the tokenizers (`read_texts`).
    """
    if prompts is not None:
        read_texts(prompts, {}, Path())
    elif drop_text_encoder:
        raise ParameterError(
            "drop_text_encoder is given, but not bake_prompts; the bundle would take no prompt: "
            "use --bake-prompts FILE"
        )


def check_takes_prompts(prompts: str | Path | None, family: FamilyExport) -> None:
    """Raise `ParameterError` if there are prompts to bake for a model that takes none."""
    if prompts is not None and not family.tokenizers:
        raise ParameterError(
            f"bake_prompts is {prompts}, but this model makes videos of an image alone: leave it "
            "out"
        )


def leave_out_dropped(family: FamilyExport, manifest: Manifest) -> FamilyExport:
    """Return the family without the text encoders that a bundle of it was made without."""
    if manifest.prompts is None or manifest.tokenizers:
        return family
    makers = family.component_makers.items()
    kept = {name: make for name, make in makers if not name.startswith(_TEXT_ENCODER)}
    return replace(family, component_makers=kept)


def read_texts(
    prompts: str | Path, tokenizers: Mapping[str, TokenizerRecord], folder: Path
) -> list[str]:
    """Return the prompts in a text file, one on each line.

    Args:
        prompts: The file, UTF-8; empty lines and lines that begin with # are passed over.
        tokenizers: Those that the prompts must fit.
        folder: The bundle's, where they are written already.

    Raises:
        ParameterError: The file cannot be read, has no prompt, or has one that cannot be used.
    """
    opened = [TextTokenizer(folder / record.file, record) for record in tokenizers.values()]
    try:
        return read_prompts(Path(prompts), opened)
    except CalibrationError as err:
        raise ParameterError(str(err)) from err


def write_baked_prompts(
    manifest: Manifest, folder: Path, texts: Iterable[str], *, drop_text_encoder: bool
) -> Manifest:
    """Write what a bundle's text encoders make of texts into it; return its new manifest.

    The encodings are those of a generation with the default options, to the bit. The default
    negative prompt is baked too.

    Args:
        manifest: The bundle's, which lists all of its files.
        folder: The bundle's.
        texts: What to bake, each once.
        drop_text_encoder: Remove the text encoders and the tokenizers, so that the bundle takes no
            other text.

    Raises:
        EngineError: A text encoder cannot be run, or takes more than a text.
    """
    bundle = Bundle(folder, manifest)
    components = Components(bundle, EngineOptions())
    encoder = ConditionEncoder(bundle, components)
    known = list(dict.fromkeys((*texts, manifest.defaults.negative_prompt)))
    try:
        rows = [encoder.encode_text(text, Timings()) for text in known]
    finally:
        for name in components.loaded:
            components.unload(name)
    target = folder / PROMPTS_PATH
    target.parent.mkdir()
    save_file(
        {output: np.concatenate([row[output] for row in rows]) for output in rows[0]},
        target,
        {TEXTS: json.dumps(known, ensure_ascii=False), FORMAT: FORMAT_NAME},
    )
    files = {**manifest.files, PROMPTS_PATH: make_file_record(target)}
    baked = replace(manifest, prompts=PROMPTS_PATH, files=dict(sorted(files.items())))
    if drop_text_encoder:
        return _drop_text_encoders(baked, folder, list(encoder.text_encoders))
    return baked


def _drop_text_encoders(manifest: Manifest, folder: Path, names: list[str]) -> Manifest:
    """Remove these components and all tokenizers, and the prompts that only they could take."""
    graphs = [path for name in names for path in manifest.components[name].variants.values()]
    tokenizers = [record.file for record in manifest.tokenizers.values()]
    dropped = {PurePosixPath(path).parent for path in (*graphs, *tokenizers)}
    for path in dropped:
        shutil.rmtree(folder / path)
    (folder / CALIBRATION_PROMPTS_PATH).unlink(missing_ok=True)
    return replace(
        manifest,
        components={n: record for n, record in manifest.components.items() if n not in names},
        tokenizers={},
        files={
            path: record
            for path, record in manifest.files.items()
            if PurePosixPath(path).parent not in dropped and path != CALIBRATION_PROMPTS_PATH
        },
    )
