"""mutoscope_tokenize gives the ids of the `tokenizers` library; ctest has more texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mutoscope.runtime.bundle import DEFAULT_BUNDLE_PATH
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.native import Library, NativePipeline
from tests.runtime.native.make_tokenizer_corpus import TextMaker, list_vocabulary_words
from tests.runtime.native.native_bundles import TOKENIZER

NUM_TEXTS = 20_000


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of all scripts, with emoji, combining marks, control and zero characters."""
    shipped = json.loads((DEFAULT_BUNDLE_PATH / TOKENIZER).read_text(encoding="utf-8"))
    maker = TextMaker(random.Random(3), list_vocabulary_words(shipped))
    return ["", "\0", "a\0red circle", *(maker.make() for _ in range(NUM_TEXTS))]


def test_the_ids_are_those_of_the_tokenizers_library(library: Library, texts: list[str]) -> None:
    expected = Tokenizer.from_file(str(DEFAULT_BUNDLE_PATH / TOKENIZER))
    with NativePipeline.open(DEFAULT_BUNDLE_PATH, library=library) as pipeline:
        for text in texts:
            assert pipeline.tokenize(text) == expected.encode(text).ids, ascii(text)


def test_bytes_that_are_no_utf8_never_pass(
    library: Library, texts: list[str], text_bundle: Path
) -> None:
    """Damaged at a byte, a text is refused exactly where Python cannot decode it."""
    generator = random.Random(4)
    with NativePipeline.open(text_bundle, library=library) as pipeline:
        for text in texts[: NUM_TEXTS // 10]:
            data = bytearray(text.encode())
            if not data:
                continue
            data[generator.randrange(len(data))] = generator.randrange(256)
            try:
                data.decode()
            except UnicodeDecodeError:
                with pytest.raises(ParameterError, match="is not valid UTF-8"):
                    pipeline.tokenize(bytes(data))
            else:
                pipeline.tokenize(bytes(data))
