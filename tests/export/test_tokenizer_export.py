from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers

from mutoscope.export import CheckpointError, ExportParityError
from mutoscope.export import tokenizer as tokenizer_module
from mutoscope.export.tokenizer import export_tokenizer
from tests.checkpoints import OTHER, make_tokenizer


def test_a_tokenizer_is_made_from_vocabulary_and_merges(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer-source"
    reference = make_tokenizer(folder, OTHER)
    assert not (folder / "tokenizer.json").exists()
    record = export_tokenizer(folder, "CLIPTokenizer", 20, tmp_path / "bundle")
    assert (record.file, record.max_length) == ("tokenizer/tokenizer.json", 20)
    assert record.pad_token_id == reference.convert_tokens_to_ids("!")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "bundle" / record.file))
    ids = tokenizer.encode("a red circle moves left").ids
    assert ids == reference("a red circle moves left").input_ids
    assert len(ids) == 7  # one for each word, and the two ends


def test_tokenizer_json_neither_cuts_nor_pads(tiny_bundle: Path) -> None:
    content = json.loads((tiny_bundle / "tokenizer" / "tokenizer.json").read_text())
    assert content["truncation"] is None
    assert content["padding"] is None


def test_a_tokenizer_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    make_tokenizer(folder, OTHER)
    load = tokenizers.Tokenizer.from_str

    def load_without_lower_case(text: str) -> tokenizers.Tokenizer:
        tokenizer = load(text)
        tokenizer.normalizer = tokenizers.normalizers.NFC()
        return tokenizer

    patched = SimpleNamespace(
        from_str=load_without_lower_case, from_file=tokenizers.Tokenizer.from_file
    )
    monkeypatch.setattr(tokenizer_module, "Tokenizer", patched)
    with pytest.raises(ExportParityError, match="other ids than the checkpoint's tokenizer"):
        export_tokenizer(folder, "CLIPTokenizer", 20, tmp_path / "bundle")


@pytest.mark.parametrize("class_name", ["CLIPTokenizer", "NoSuchTokenizer"])
def test_a_tokenizer_that_cannot_be_opened_is_one_line(
    class_name: str, tmp_path: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "checkpoint" / "tokenizer").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"^checkpoint/tokenizer .* {class_name}: .+$"):
        export_tokenizer(tmp_path / "checkpoint" / "tokenizer", class_name, 20, tmp_path / "bundle")
