"""Write a checkpoint's tokenizer as the one file that the runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mutoscope.export.errors import CheckpointError, ExportParityError
from mutoscope.export.hub import name_component
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.runtime.manifest import TokenizerRecord

TOKENIZER_NAME = "tokenizer.json"
# Each tries something that two tokenizers could do differently.
CHECKED_PROMPTS = (
    "",
    "a red circle moves left on a gray background",
    "A Red CIRCLE, moving: left!",
    "  spaces\tand\nnew lines  ",
    "it's 2 o'clock; 100% of 3.14 & (more) [brackets] {braces}",
    "caf\u00e9 na\u00efve \u00dcber cafe\u0301",
    "\u7d05\u3044\u5186\u304c\u52d5\u304f",
    "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u043a\u0440\u0443\u0433",
    "\U0001f600 \U0001f1ef\U0001f1f5",
    "<|startoftext|> inner <|endoftext|> tokens </w> <pad>",
    "a-b_c/d\\e @#$^*+=~`|",
    "word " * 200,
)


def export_tokenizer(
    folder: Path, class_name: str, max_length: int, bundle: Path, *, name: str = "tokenizer"
) -> TokenizerRecord:
    """Write NAME/tokenizer.json into the bundle and return its record.

    The file carries no truncation and no padding: the runtime refuses a prompt that is too long,
    and pads by the record.

    Args:
        folder: The tokenizer's folder; vocab.json and merges.txt do if it has no tokenizer.json.
        class_name: The transformers class that the checkpoint names.
        max_length: How many ids the text encoder takes.
        bundle: The folder to write to.
        name: Its folder there.

    Raises:
        CheckpointError: The tokenizer cannot be opened.
        ExportParityError: The file gives other ids than the checkpoint's tokenizer.
    """
    where = name_component(folder)
    try:
        tokenizer_class = getattr(transformers, class_name)
        check_tokenizer_files(where, folder, tokenizer_class)
        with quiet_libraries():
            reference = tokenizer_class.from_pretrained(folder, local_files_only=True)
            fast = reference
            if not reference.is_fast:  # transformers before 5 has two of each
                fast = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (AttributeError, OSError, TypeError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CheckpointError(f"{where} cannot be opened as {class_name}: {reason}") from err
    if reference.pad_token_id is None:
        raise CheckpointError(
            f"{where} has no pad_token, with which short prompts are filled up: state it in "
            "tokenizer_config.json"
        )
    tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    file = f"{name}/{TOKENIZER_NAME}"
    path = bundle / file
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    record = TokenizerRecord(
        file=file,
        max_length=min(max_length, reference.model_max_length),
        pad_token_id=reference.pad_token_id,
    )
    _check_ids(Tokenizer.from_file(str(path)), reference, record)
    return record


def check_tokenizer_files(where: str, folder: Path, tokenizer_class: Any) -> None:
    """Raise `CheckpointError` for a folder without a vocabulary.

    transformers 5 makes an empty tokenizer of it without a word, which knows no text at all.
    """
    if (folder / TOKENIZER_NAME).is_file():
        return
    names = {name for name in tokenizer_class.vocab_files_names.values() if name != TOKENIZER_NAME}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing or not names:
        raise CheckpointError(
            f"{where} lacks {missing[0] if missing else TOKENIZER_NAME}: a tokenizer has "
            f"{TOKENIZER_NAME}, or {' and '.join(sorted(names, reverse=True))}; copy it from the "
            "model's repository"
        )


def _check_ids(tokenizer: Any, reference: Any, record: TokenizerRecord) -> None:
    """Raise `ExportParityError` unless both give the same ids, padded as the runtime pads."""
    for prompt in CHECKED_PROMPTS:
        found = tokenizer.encode(prompt).ids
        with quiet_libraries():
            if len(found) > record.max_length:
                expected = reference(prompt).input_ids
            else:
                found += [record.pad_token_id] * (record.max_length - len(found))
                expected = reference(
                    prompt, padding="max_length", max_length=record.max_length, truncation=True
                ).input_ids
        if found != expected:
            raise ExportParityError(
                f"tokenizer.json gives other ids than the checkpoint's tokenizer for {prompt!r}: "
                "save the tokenizer again with tokenizer.save_pretrained(FOLDER)"
            )
