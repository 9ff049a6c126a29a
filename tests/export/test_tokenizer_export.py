from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers

from mutoscope.export import CheckpointError, ExportParityError
from mutoscope.export import tokenizer as tokenizer_module
from mutoscope.export.tokenizer import export_tokenizer
from mutoscope.runtime.manifest import TokenizerRecord
from tests.checkpoints import EOS, OTHER, make_tokenizer


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


def copy_files(source: Path, folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(source / name, folder / name)
    return folder


def read_ids(bundle: Path, record: TokenizerRecord, prompt: str) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_file(str(bundle / record.file)).encode(prompt).ids
    return ids


@pytest.mark.parametrize(
    "names",
    [
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
        ("tokenizer.json", "tokenizer_config.json"),
        ("vocab.json", "merges.txt"),
    ],
)
def test_a_tokenizer_is_made_from_whichever_files_there_are(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    reference = make_tokenizer(tmp_path / "source", OTHER)
    reference.save_pretrained(tmp_path / "source")
    folder = copy_files(tmp_path / "source", tmp_path / "checkpoint" / "tokenizer_2", *names)
    record = export_tokenizer(folder, "CLIPTokenizer", 20, tmp_path / "bundle", name="tokenizer_2")
    assert record.file == "tokenizer_2/tokenizer.json"
    prompt = "A red circle, moving left"
    assert read_ids(tmp_path / "bundle", record, prompt) == reference(prompt).input_ids
    # The second tokenizer of SDXL pads with "!", which only its configuration tells.
    stated = "tokenizer_config.json" in names
    assert record.pad_token_id == reference.convert_tokens_to_ids("!" if stated else EOS)


def test_merges_of_before_the_version_line_are_read(tmp_path: Path) -> None:
    reference = make_tokenizer(tmp_path / "source", OTHER)
    lines = (tmp_path / "source" / "merges.txt").read_text().splitlines()
    assert lines[0] == "#version: 0.2"
    (tmp_path / "source" / "merges.txt").write_text("\n".join(lines[1:]) + "\n")
    record = export_tokenizer(tmp_path / "source", "CLIPTokenizer", 20, tmp_path / "bundle")
    prompt = "a red circle moves left"
    assert read_ids(tmp_path / "bundle", record, prompt) == reference(prompt).input_ids


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("vocab.json", "tokenizer_config.json"), "merges.txt"),
        (("merges.txt", "tokenizer_config.json"), "vocab.json"),
        (("tokenizer_config.json",), "merges.txt"),
    ],
)
def test_a_tokenizer_without_a_vocabulary_is_refused(
    names: tuple[str, ...], missing: str, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "source", OTHER)
    folder = copy_files(tmp_path / "source", tmp_path / "checkpoint" / "tokenizer", *names)
    with pytest.raises(
        CheckpointError,
        match=rf"^checkpoint/tokenizer lacks {missing}: .* or vocab\.json and merges\.txt; copy",
    ):
        export_tokenizer(folder, "CLIPTokenizer", 20, tmp_path / "bundle")


def test_a_tokenizer_without_a_pad_token_is_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "source", OTHER)
    settings = json.loads((tmp_path / "source" / "tokenizer_config.json").read_text())
    settings["pad_token"] = None
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"source has no pad_token, with which short prompts"):
        export_tokenizer(tmp_path / "source", "CLIPTokenizer", 20, tmp_path / "bundle")


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


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("CLIPTokenizer", r"^checkpoint/tokenizer lacks merges\.txt"),
        ("NoSuchTokenizer", r"^checkpoint/tokenizer cannot be opened as NoSuchTokenizer: .+$"),
    ],
)
def test_a_tokenizer_that_cannot_be_opened_is_one_line(
    class_name: str, message: str, tmp_path: Path, edit_checkpoint: Callable[..., Path]
) -> None:
    (tmp_path / "checkpoint" / "tokenizer").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=message):
        export_tokenizer(tmp_path / "checkpoint" / "tokenizer", class_name, 20, tmp_path / "bundle")
