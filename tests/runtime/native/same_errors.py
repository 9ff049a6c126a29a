"""Bad input to both runtimes: the same exception with the same message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mutoscope.runtime.errors import MutoscopeError


def catch(call: Callable[[], object]) -> MutoscopeError:
    """What a call that must fail raises."""
    with pytest.raises(MutoscopeError) as caught:
        call()
    return caught.value


def check_same(
    native: Callable[[], object],
    python: Callable[[], object],
    error: type[MutoscopeError],
    *,
    same_way_out: bool = True,
) -> None:
    """Both calls raise this error with the same message; the part after the last colon may differ.

    It does where it names a command or an argument that only Python has.
    """
    found, expected = catch(native), catch(python)
    assert (type(found), type(expected)) == (error, error), (found, expected)
    texts = str(found), str(expected)
    assert "\n" not in texts[0]
    if not same_way_out:
        assert texts[0].count(":") > 0
        texts = texts[0].rpartition(":")[0], texts[1].rpartition(":")[0]
    assert texts[0] == texts[1]
