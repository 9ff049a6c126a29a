"""What text encoders made of prompts, kept so that the same prompt is encoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from mutoscope.engines.engine import Array

# A prompt of Stable Diffusion XL takes 0.6 MB, one of Stable Diffusion 1.5 0.2 MB.
MAXIMUM_ENTRIES = 64


class PromptCache:
    """Outputs of encoders by all of their inputs; the least recently used are dropped."""

    def __init__(self, maximum_entries: int = MAXIMUM_ENTRIES) -> None:
        """Make an empty cache."""
        self._maximum_entries = maximum_entries
        self._entries: OrderedDict[str, dict[str, Array]] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._entries)

    def find(self, key: str) -> dict[str, Array] | None:
        """Return the outputs that were kept under a key, if they are there."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def add(self, key: str, outputs: Mapping[str, Array]) -> None:
        """Keep outputs by their names; the arrays become read-only."""
        for array in outputs.values():
            array.flags.writeable = False
        self._entries[key] = dict(outputs)
        self._entries.move_to_end(key)
        if len(self._entries) > self._maximum_entries:
            self._entries.popitem(last=False)


def make_key(component_name: str, feeds: Mapping[str, Array]) -> str:
    """Return what the outputs of a component are kept by: the digest of all that it is fed.

    Args:
        component_name: Its name in the bundle.
        feeds: An array for each input, as the graph takes it.
    """
    digest = hashlib.sha256(component_name.encode())
    for name, array in sorted(feeds.items()):
        digest.update(f"\0{name}\0{array.dtype.str}{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
