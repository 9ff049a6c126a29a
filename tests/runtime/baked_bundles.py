"""Hand-made bundles with baked prompts, written by the safetensors library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mutoscope.runtime.baked_prompts import FORMAT_NAME, PROMPTS_PATH
from mutoscope.runtime.manifest import TokenizerRecord
from mutoscope.runtime.tokenizer import TextTokenizer
from tests.runtime.hand_made_bundle import EMBEDDING, MAX_LENGTH, write_manifest

TEXTS = ("a red circle", "a blue square moves left", "")


def encode(bundle: Path, texts: Sequence[str] = TEXTS) -> np.ndarray:
    """What the text encoder of the hand-made bundle makes of texts, float32 [N, S, D]."""
    record = TokenizerRecord("tokenizer/tokenizer.json", MAX_LENGTH, 1)
    tokenizer = TextTokenizer(bundle / record.file, record)
    return EMBEDDING[np.concatenate([tokenizer.encode("prompt", text) for text in texts])]


def bake(
    bundle: Path,
    tensors: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    texts: Sequence[str] = TEXTS,
) -> None:
    """Write baked prompts into a hand-made bundle."""
    known = {"texts": json.dumps(list(texts)), "format": FORMAT_NAME}
    path = bundle / PROMPTS_PATH
    path.parent.mkdir(exist_ok=True)
    made = {"prompt_embeds": encode(bundle, texts)} if tensors is None else dict(tensors)
    save_file(made, path, known if metadata is None else dict(metadata))
    _change(bundle, {"prompts": PROMPTS_PATH})


def drop_text_encoder(bundle: Path) -> None:
    """Leave the text encoder and the tokenizer out of a hand-made bundle."""
    shutil.rmtree(bundle / "text_encoder")
    shutil.rmtree(bundle / "tokenizer")
    _change(bundle, {"tokenizers": {}}, "text_encoder")


def _change(bundle: Path, fields: Mapping[str, Any], without: str = "") -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["components"].pop(without, None)
    write_manifest(bundle, {**manifest, **fields})
