"""Learns the CLIP tokenizer: any text encodes, and each word of a caption is one token."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Final

from transformers import CLIPTokenizer

from training.clips import COLOURS, MOTIONS, SHAPES, ClipAttributes, list_training_attributes

MAX_LENGTH: Final = 32
"""Tokens in an encoded prompt, start and end included."""
END_OF_WORD: Final = "</w>"
START_TOKEN: Final = "<|startoftext|>"
END_TOKEN: Final = "<|endoftext|>"
CONNECTING_WORDS: Final = "a an the and on in behind background pillar moves video clip of"


def list_byte_symbols() -> list[str]:
    """Return the printable symbols that stand for bytes 0 to 255 in byte-level pair encoding.

    Source: bytes_to_unicode of GPT-2.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {byte: chr(256 + offset) for offset, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return merges, most frequent pair first, until each word is one symbol."""
    spelled = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of the pair in a spelled word."""
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def list_caption_words() -> list[str]:
    """Return every word that captions hold, sorted."""
    captions = [attributes.caption() for attributes in list_training_attributes()]
    captions += [ClipAttributes("red", "star", "moves left", "gray", pillar=True).caption()]
    captions += [*COLOURS, *SHAPES, *MOTIONS, CONNECTING_WORDS]
    return sorted({word for caption in captions for word in caption.split()})


def make_tokenizer() -> CLIPTokenizer:
    """Return the tokenizer: 512 byte symbols, the merges and two special tokens."""
    symbols = list_byte_symbols()
    merges = learn_merges(list_caption_words())
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
    tokens += ["".join(pair) for pair in merges]
    tokens += [START_TOKEN, END_TOKEN]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, and vocab.json and merges.txt beside them."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocab = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
