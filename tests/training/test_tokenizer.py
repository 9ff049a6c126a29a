import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from training.tokenizer import (
    MAX_LENGTH,
    learn_merges,
    list_byte_symbols,
    list_caption_words,
    make_tokenizer,
    save_tokenizer,
)

TEXTS = (
    "a red circle moves left behind a pillar on a gray background",
    "A  Red\tCIRCLE",
    "Zo\u00eb's caf\u00e9: 42 stars \U0001f600",
    "",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(make_tokenizer(), folder)
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_the_saved_tokenizer_gives_the_same_ids_with_and_without_transformers(saved, text):
    ids = make_tokenizer()(text).input_ids
    assert CLIPTokenizer.from_pretrained(saved)(text).input_ids == ids
    assert Tokenizer.from_file(str(saved / "tokenizer.json")).encode(text).ids == ids


def test_the_saved_folder_has_the_files_that_others_read(saved):
    names = {path.name for path in saved.iterdir()}
    assert names >= {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"}
    assert CLIPTokenizer.from_pretrained(saved).model_max_length == MAX_LENGTH


def test_any_text_decodes_to_itself_in_lower_case():
    tokenizer = make_tokenizer()
    for text in ("quick brown fox", "na\u00efve r\u00e9sum\u00e9", "\u65e5\u672c"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_each_caption_word_is_one_token():
    tokenizer = make_tokenizer()
    for word in list_caption_words():
        assert len(tokenizer(word).input_ids) == 3, word


def test_merges_join_the_most_frequent_pair_first():
    assert learn_merges(["ab", "abc", "abd"])[0] == ("a", "b")
    assert learn_merges(["aa"]) == [("a", "a</w>")]
    assert learn_merges(["a"]) == []


def test_each_byte_has_its_own_symbol():
    symbols = list_byte_symbols()
    assert len(set(symbols)) == 256
    assert symbols[ord("a")] == "a"
    assert not any(symbol.isspace() for symbol in symbols)
