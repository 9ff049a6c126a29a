"""Write tokenizers and fuzzed texts with the ids that the `tokenizers` library gives them.

python tests/runtime/native/make_tokenizer_corpus.py FOLDER [--texts N] [--seed N]

FOLDER gets NAME.json, a tokenizer, and NAME.jsonl, a line for each text: the text, its ids, and
where in the text each token begins. tokenizer_test FOLDER compares.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

BUNDLE = Path(__file__).resolve().parents[3] / "runtime/default_bundle"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPACES = [*map(chr, range(0x09, 0x0E)), " ", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e"]
SPACES += [*map(chr, range(0x2000, 0x2010)), "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"]
SPACES += ["\ufeff", "\u2060"]
FIXED = [
    "it's", "IT'S", "they're", "we've", "I'm", "you'll", "he'd", "don't", "'", "''s", "'\u017f",
    "'S", "!'s", "<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "<|endoftext", "|>", "</w>",
    "<|", "\0", "\x7f", "\u0130", "\u0130stanbul", "\u03a3\u03a3", "\u0391\u03a3", "\u1e9e",
    "\ufb01", "\u212b", "\u2126", "\u0344", "\u0958", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1ef\U0001f1f5", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3", "\u0e01\u0e33", "\u200b",
    "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\u1100\u1161", "\uac00\u11a8",
    "\u0f71\u0f72\u0f74", "\U0001d15e", "\U00011938", "a\u0315\u0300\u05ae\u0062",
    "\u0061\u0300\u0315", "100%", "3.14", "\u00b2\u00bd\u2460\u0663", "\ufffd", "\U0010ffff",
]  # fmt: skip
SHORT, LONG = 12, 4000


def list_scripts() -> list[list[str]]:
    """Return the assigned characters of each script, which is the first word of their names."""
    scripts: dict[str, list[str]] = {}
    for code in range(0x110000):
        name = unicodedata.name(chr(code), "")
        if name:
            scripts.setdefault(name.split()[0].split("-")[0], []).append(chr(code))
    return [characters for characters in scripts.values() if len(characters) > 1]


def list_vocabulary_words(tokenizer: dict[str, Any]) -> list[str]:
    """Return tokens of a vocabulary as text, as far as they are text by themselves."""
    decoder = {symbol: byte for byte, symbol in enumerate(list_byte_symbols())}
    words = []
    for token in tokenizer["model"]["vocab"]:
        symbols = token.removesuffix("</w>")
        if all(symbol in decoder for symbol in symbols):
            text = bytes(decoder[symbol] for symbol in symbols).decode("utf-8", "ignore")
            words += [text, f"{text} ", f" {text}"]
    return words


def list_byte_symbols() -> list[str]:
    """Return the characters that stand for the bytes 0 to 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {byte: chr(256 + offset) for offset, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


class TextMaker:
    """Makes texts of pieces of all kinds."""

    def __init__(self, generator: random.Random, words: list[str]) -> None:
        """Prepare the kinds of pieces."""
        self._random = generator
        self._words = words
        self._scripts = list_scripts()
        codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        self._marks = [chr(code) for code in codes if unicodedata.combining(chr(code))]
        self._composed = [chr(c) for c in codes if unicodedata.decomposition(chr(c))]
        self._codes = codes
        self._kinds: list[Callable[[], str]] = [
            self._make_word,
            self._make_word,
            self._make_script_word,
            self._make_script_word,
            self._make_marks,
            self._make_decomposed,
            self._make_hangul,
            self._make_emoji,
            lambda: self._random.choice(FIXED),
            lambda: self._random.choice(FIXED),
            lambda: self._random.choice(SPACES) * self._random.randint(1, 3),
            lambda: chr(self._random.randrange(0x20)),
            lambda: chr(self._random.randrange(0x20, 0x7F)),
            lambda: chr(self._random.choice(self._codes)),
            lambda: str(self._random.randrange(10000)),
        ]

    def make(self) -> str:
        """Return a text; now and then a very long one."""
        count = self._random.randint(0, SHORT)
        if self._random.random() < 0.0005:
            return self._random.choice(self._kinds)() * self._random.randint(1, LONG)
        joint = self._random.choice(["", " ", ""])
        return joint.join(self._random.choice(self._kinds)() for _ in range(count))

    def _make_word(self) -> str:
        word = self._random.choice(self._words)
        change = self._random.choice([str, str, str.upper, str.title, str.swapcase])
        return change(word)

    def _make_script_word(self) -> str:
        script = self._random.choice(self._scripts)
        return "".join(self._random.choices(script, k=self._random.randint(1, 6)))

    def _make_marks(self) -> str:
        base = self._random.choice([*"aeiouAIn", "\u03b1", "\u0905", "\u05e9", "\u0627", "", " "])
        return base + "".join(self._random.choices(self._marks, k=self._random.randint(1, 5)))

    def _make_decomposed(self) -> str:
        form = self._random.choice(["NFC", "NFD", "NFKD"])
        composed = self._random.choice(self._composed)
        parts = list(unicodedata.normalize(form, composed))  # type: ignore[arg-type]
        if self._random.random() < 0.3:
            self._random.shuffle(parts)
        return "".join(parts)

    def _make_hangul(self) -> str:
        parts = [(0x1100, 0x1115), (0x1160, 0x1178), (0x11A6, 0x11C4), (0xAC00, 0xD7A5)]
        ranges = self._random.choices(parts, k=self._random.randint(1, 5))
        return "".join(chr(self._random.randrange(*limits)) for limits in ranges)

    def _make_emoji(self) -> str:
        faces = [chr(self._random.randrange(0x1F300, 0x1FAFF)) for _ in range(3)]
        extras = ["", "\u200d", "\ufe0f", "\U0001f3fb"]
        return "".join(face + self._random.choice(extras) for face in faces)


def list_code_point_texts(generator: random.Random) -> Iterator[str]:
    """Yield texts that hold every code point: among letters, and beside others in any order."""
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for first in range(0, len(codes), 32):
        yield " x".join(map(chr, codes[first : first + 32]))
    generator.shuffle(codes)
    for first in range(0, len(codes), 32):
        yield "".join(map(chr, codes[first : first + 32]))


def train_tokenizer(words: list[str]) -> dict[str, Any]:
    """Return a CLIP tokenizer with thousands of merges, learnt from names and words."""
    names = [unicodedata.name(chr(code), "").lower() for code in range(0x3000)]
    symbols = list_byte_symbols()
    learner = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    scripts = ["".join(script[:40]) for script in list_scripts()]
    learner.train_from_iterator([*names, *words, *scripts] * 3, trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = json.loads((BUNDLE / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    vocab = {token: index for index, token in enumerate(learnt["vocab"])}
    for symbol in symbols:
        vocab.setdefault(f"{symbol}</w>", len(vocab))
    tokenizer["model"] |= {"vocab": vocab, "merges": learnt["merges"]}
    tokenizer["post_processor"]["cls"][1] = vocab["<|startoftext|>"]
    tokenizer["post_processor"]["sep"][1] = vocab["<|endoftext|>"]
    return tokenizer  # type: ignore[no-any-return]


def make_added_token(content: str, **options: bool) -> dict[str, Any]:
    """Return an entry of added_tokens."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": 0, "content": content} | {flag: options.get(flag, False) for flag in flags}


def make_variants(tokenizer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return tokenizers that use what is not in the common one."""
    variants: dict[str, dict[str, Any]] = {}

    def add(name: str) -> dict[str, Any]:
        variants[name] = copy.deepcopy(tokenizer)
        return variants[name]

    old = add("old_format")
    old["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = CLIP_PATTERN
    del old["pre_tokenizer"]["pretokenizers"][1]["use_regex"], old["model"]["type"]
    old["model"]["merges"] = ["#version: 0.2", *map(" ".join, old["model"]["merges"])]
    for token in old["added_tokens"]:
        token["normalized"] = True

    added = add("added_tokens")
    added["added_tokens"] += [
        make_added_token("red", single_word=True),
        make_added_token("1", lstrip=True),
        make_added_token(" ", rstrip=True),
        make_added_token("a"),
        make_added_token("an\u0300", rstrip=True, lstrip=True),
        make_added_token("Blue", normalized=True, single_word=True),
        make_added_token("\u0130", normalized=True),
        make_added_token("e\u0301", normalized=True, lstrip=True, rstrip=True),
        make_added_token("'s", normalized=True, special=True),
        make_added_token("'", normalized=True, special=True),
    ]

    bytes_only = add("byte_level_only")
    bytes_only["normalizer"] = None
    bytes_only["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    bytes_only["post_processor"] |= {"trim_offsets": True, "add_prefix_space": True}

    whole = add("no_regex")
    whole["pre_tokenizer"]["pretokenizers"][1] |= {"use_regex": False, "add_prefix_space": True}
    whole["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Isolated", "invert": False}
    whole["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }

    removed = add("spaces_only")
    removed["pre_tokenizer"]["pretokenizers"][0]["invert"] = False
    start, end = tokenizer["post_processor"]["cls"], tokenizer["post_processor"]["sep"]
    removed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": start[0], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": end[0], "type_id": 0}},
            {"SpecialToken": {"id": start[0], "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (start, end)
        },
    }

    for name, fuse, fallback, unknown in (
        ("unknown", False, False, "<|endoftext|>"),
        ("fused_unknown", True, False, "<|endoftext|>"),
        ("vanishing_unknown", False, False, None),
        ("byte_fallback", False, True, "<|endoftext|>"),
    ):
        sparse = add(name)
        model = sparse["model"]
        kept = {token for token in model["vocab"] if not ord("g") <= ord(token[0]) <= ord("w")}
        vocab = {token: index for token, index in model["vocab"].items() if token in kept}
        if fallback:
            vocab |= {f"<0x{byte:02X}>": 50000 + byte for byte in range(256)}
        parts = ((*merge, "".join(merge)) for merge in model["merges"])
        model["merges"] = [list(part[:2]) for part in parts if kept.issuperset(part)]
        model |= {"fuse_unk": fuse, "byte_fallback": fallback, "unk_token": unknown}
        model["vocab"] = vocab
        sparse["pre_tokenizer"] = sparse["pre_tokenizer"]["pretokenizers"][0]
        sparse["post_processor"] = {"type": "BertProcessing", "cls": start, "sep": end}

    ignoring = add("ignore_merges")
    ignoring["model"]["ignore_merges"] = True
    ignoring["model"]["merges"] = ignoring["model"]["merges"][::3]
    ignoring["post_processor"] = None
    return variants


def write_corpus(folder: Path, name: str, tokenizer: dict[str, Any], texts: Iterator[str]) -> int:
    """Write a tokenizer and texts with what it makes of them; return how many."""
    text = json.dumps(tokenizer)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    encode = Tokenizer.from_str(text).encode
    count = 0
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for text in texts:
            encoding = encode(text)
            begins = [begin for begin, _ in encoding.offsets]
            line = {"text": text, "ids": encoding.ids, "begins": begins}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            count += 1
    return count


def write_corpora(folder: Path, num_texts: int, seed: int) -> int:
    """Write all corpora; return how many texts they have together.

    Args:
        folder: Where to; it is made.
        num_texts: How many fuzzed texts the common tokenizer gets; others get a tenth each. Those
            with every code point come on top if there are at least 100,000.
        seed: Of the texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    shipped = json.loads((BUNDLE / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    words = list_vocabulary_words(shipped)
    trained = train_tokenizer(words)
    maker = TextMaker(generator, words + list_vocabulary_words(trained))

    def make_texts(count: int) -> Iterator[str]:
        return islice(iter(maker.make, None), count)

    total = write_corpus(folder, "trained", trained, make_texts(num_texts))
    total += write_corpus(folder, "shipped", shipped, make_texts(num_texts // 10))
    for name, variant in make_variants(trained).items():
        total += write_corpus(folder, name, variant, make_texts(num_texts // 10))
    if num_texts >= 100000:
        every = list_code_point_texts(generator)
        total += write_corpus(folder, "code_points", shipped, every)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write_corpora(arguments.folder, arguments.texts, arguments.seed), "texts")
