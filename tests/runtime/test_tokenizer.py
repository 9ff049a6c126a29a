from pathlib import Path

import pytest

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import TokenizerRecord
from mutoscope.runtime.tokenizer import TextTokenizer


@pytest.fixture
def tokenizer(bundle_path: Path) -> TextTokenizer:
    record = Bundle.open(bundle_path).manifest.tokenizers["input_ids"]
    return TextTokenizer(bundle_path / record.file, record)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a red circle", [0, 3, 4, 6, 1, 1, 1, 1]),
        ("", [0, 1, 1, 1, 1, 1, 1, 1]),
        ("a réd 🟠", [0, 3, 2, 2, 1, 1, 1, 1]),
        ("a a a a a a", [0, 3, 3, 3, 3, 3, 3, 1]),
    ],
)
def test_encode_pads_to_the_bundles_length(
    tokenizer: TextTokenizer, prompt: str, ids: list[int]
) -> None:
    encoded = tokenizer.encode("prompt", prompt)
    assert encoded.dtype == "int64"
    assert encoded.tolist() == [ids]


def test_encode_does_not_cut_a_prompt_that_is_too_long(tokenizer: TextTokenizer) -> None:
    with pytest.raises(
        ParameterError,
        match=r"negative_prompt has 10 tokens \(2 of them added by the tokenizer\); this bundle's "
        r"text encoder takes at most 8: .* begins at character 28: 'left right'",
    ):
        tokenizer.encode("negative_prompt", "a red circle moves a blue  left right")


def test_the_message_for_a_very_long_prompt_stays_one_short_line(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ParameterError, match="has 5002 tokens") as caught:
        tokenizer.encode("prompt", "a\n" * 5000)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"version": "9.0"}'])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    record = TokenizerRecord("tokenizer/tokenizer.json", 8, 1)
    with pytest.raises(BundleError, match=r"tokenizer.json is not a tokenizer \(") as caught:
        TextTokenizer(path, record)
    assert "\n" not in str(caught.value)
