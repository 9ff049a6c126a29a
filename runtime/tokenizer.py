"""The text tokenizer of a bundle: a prompt becomes token ids, and is never cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import TokenizerRecord

if TYPE_CHECKING:
    from tokenizers import Encoding

_QUOTED_CHARACTERS = 40


class TextTokenizer:
    """Tokenize prompts as the checkpoint's own tokenizer does."""

    def __init__(self, path: Path, record: TokenizerRecord) -> None:
        """Load the tokenizer from its tokenizer.json.

        Raises:
            BundleError: The file is not a tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        # tokenizers raises bare Exception for a file that it cannot read.
        except Exception as err:
            reason = str(err).splitlines()[0]
            raise BundleError(f"{record.file} is not a tokenizer ({reason}): export again") from err
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._record = record

    def encode(self, name: str, prompt: str) -> NDArray[np.int64]:
        """Return the token ids of a prompt, int64 [1, S], padded to the bundle's length.

        Args:
            name: What to call the prompt in messages: "prompt" or "negative_prompt".
            prompt: Any text; an empty one is allowed.

        Raises:
            ParameterError: The prompt has more tokens than the text encoder can take.
        """
        encoding = self._tokenizer.encode(prompt)
        ids, max_length = encoding.ids, self._record.max_length
        if len(ids) > max_length:
            raise ParameterError(_describe_too_long(name, prompt, encoding, max_length))
        padded = np.full((1, max_length), self._record.pad_token_id, dtype=np.int64)
        padded[0, : len(ids)] = ids
        return padded


def _describe_too_long(name: str, prompt: str, encoding: Encoding, max_length: int) -> str:
    """The message for a prompt that does not fit, with the words that would have to go."""
    special = sum(encoding.special_tokens_mask)
    # Special tokens have no place in the text; without them, the text's tokens count from 0.
    offsets = [
        offset
        for offset, is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not is_special
    ]
    room = max_length - special
    cut = offsets[room][0] if 0 <= room < len(offsets) else len(prompt)
    rest = " ".join(prompt[cut:].split())
    quoted = rest if len(rest) <= _QUOTED_CHARACTERS else rest[:_QUOTED_CHARACTERS] + "..."
    return (
        f"{name} has {len(encoding.ids)} tokens ({special} of them added by the tokenizer); this "
        f"bundle's text encoder takes at most {max_length}: shorten it, what does not fit begins "
        f"at character {cut + 1}: {quoted!r}"
    )
