"""Give back the memory of weights that lie in a file, while nobody reads them.

Weights that were not changed are views into the mapped files of the checkpoint. Their pages count
as memory of the process from the first time they are read until the system wants them for something
else; an export reads them three times, with much work between.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

# From Linux 5.4. It only moves pages out: those that are read again come back from the file.
_MADV_PAGEOUT = 21


def release_pages(module: torch.nn.Module) -> None:
    """Tell the system that the weights of a module are not needed for a while.

    The weights are the same in any case. Those in memory of their own (converted ones, or with a
    LoRA in them) may go to swap, if there is some. Where the system does not know this advice,
    nothing happens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in module.state_dict().values()
    }
    for start, size in storages.items():
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_PAGEOUT)
