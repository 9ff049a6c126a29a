"""The Unicode tables of libmutoscope say what the installed `tokenizers` library does."""

from __future__ import annotations

from scripts.make_unicode_tables import PATH, make_tables


def test_the_tables_are_those_of_the_installed_tokenizers_library() -> None:
    # The first line names the version that they were made with; others may be the same.
    _, _, written = PATH.read_text(encoding="utf-8").partition("\n")
    _, _, expected = make_tables().partition("\n")
    assert written == expected, "run scripts/make_unicode_tables.py"
