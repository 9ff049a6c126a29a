"""A stand-in for cuda.bindings.runtime that keeps device memory in host memory, and is strict.

Work is queued and runs when the stream is synchronized, as on a GPU: results that are read earlier
are not there yet. What would be undefined on a GPU raises `Misuse`: memory that was not allocated
or is freed, copies that are too long, handles that do not exist, work that cannot be recorded.
"""

# CUDA's names are not ours.
# ruff: noqa: N801, N802, N815

from __future__ import annotations

import ctypes
import enum
import itertools
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np


class Misuse(BaseException):
    """What would be undefined on a GPU; not an Exception, so that nothing takes it for an error."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


Work = Callable[[], None]
OK = cudaError_t.cudaSuccess


class EmulatedCuda(ModuleType):
    """One GPU and its driver.

    Attributes:
        capacity: How much memory it has.
        num_allocations: How often memory was taken.
        num_recordings: How often a graph was made.
        num_launches: How often a graph was run.
        error: What the next synchronization reports.
        driver: The version of the driver; 0 for none.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.capacity = 2**30
        self.num_allocations = self.num_recordings = self.num_launches = 0
        self.error = OK
        self.driver = 12060
        self.blocks: dict[int, np.ndarray] = {}
        self.queues: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.recording: list[Work] | None = None
        self.is_invalidated = False
        self._handles = itertools.count(1)

    def install(self, monkeypatch) -> None:
        """Have `from cuda.bindings import runtime` give this."""
        bindings, cuda = ModuleType("cuda.bindings"), ModuleType("cuda")
        bindings.runtime, cuda.bindings = self, bindings
        for module in (cuda, bindings, self):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def check_all_freed(self) -> None:
        left = {
            "blocks": self.blocks,
            "streams": self.queues,
            "graphs": self.graphs,
            "executables": self.executables,
        }
        assert not any(left.values()), {name: len(kept) for name, kept in left.items()}

    def find(self, address: int, size_bytes: int) -> np.ndarray:
        """Return device memory as bytes that can be read and written."""
        for start, block in self.blocks.items():
            if start <= address < start + block.size:
                if address + size_bytes > start + block.size:
                    raise Misuse(f"{size_bytes} bytes at the end of a block of {block.size}")
                return block[address - start : address - start + size_bytes]
        raise Misuse(f"{address} is not memory of the GPU, or was freed")

    def enqueue(self, stream: int, work: Work) -> None:
        queue = self.queues.get(stream)
        if queue is None:
            raise Misuse(f"there is no stream {stream}")
        (queue if self.recording is None else self.recording).append(work)

    def cudaGetDeviceCount(self):
        return (OK, 1) if self.driver else (cudaError_t.cudaErrorInsufficientDriver, None)

    def cudaDriverGetVersion(self):
        return OK, self.driver

    def cudaRuntimeGetVersion(self):
        return OK, 12060

    def cudaGetDeviceProperties(self, device):
        assert device == 0
        return OK, SimpleNamespace(
            name=b"Orin\0\0\0", major=8, minor=7, totalGlobalMem=self.capacity, integrated=1
        )

    def cudaGetErrorString(self, error):
        return OK, {2: b"out of memory"}.get(int(error), b"an emulated error")

    def cudaMalloc(self, size):
        if self.recording is not None:
            raise Misuse("memory is taken while a stream records")
        if size < 1:
            raise Misuse(f"{size} bytes are taken")
        if sum(block.size for block in self.blocks.values()) + size > self.capacity:
            return cudaError_t.cudaErrorMemoryAllocation, None
        self.num_allocations += 1
        # Not zero, as on a GPU.
        block = np.full(size, 0xA5, np.uint8)
        self.blocks[block.ctypes.data] = block
        return OK, block.ctypes.data

    def cudaFree(self, address):
        # CUDA waits for what is queued before it frees.
        for stream in self.queues:
            self._run(stream)
        if self.blocks.pop(address, None) is None:
            raise Misuse(f"{address} is freed and is not a block")
        return (OK,)

    def cudaMemsetAsync(self, address, value, count, stream):
        self.find(address, count)
        self.enqueue(stream, lambda: self.find(address, count).fill(value))
        return (OK,)

    def cudaMemcpyAsync(self, destination, source, count, kind, stream):
        if self.recording is not None:
            raise Misuse("ordinary memory is copied while a stream records")
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.find(destination, count)
            # Ordinary memory is read before the call returns.
            data = np.frombuffer(ctypes.string_at(source, count), np.uint8)
            self.enqueue(stream, lambda: np.copyto(self.find(destination, count), data))
        else:
            self.find(source, count)
            self.enqueue(
                stream,
                lambda: ctypes.memmove(destination, self.find(source, count).tobytes(), count),
            )
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.queues[handle] = []
        return OK, handle

    def cudaStreamDestroy(self, stream):
        if self.queues.pop(stream, None) is None:
            raise Misuse(f"there is no stream {stream}")
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if self.recording is not None:
            raise Misuse("a stream is waited for while it records")
        self._run(stream)
        error, self.error = self.error, OK
        return (error,)

    def cudaStreamBeginCapture(self, stream, mode):
        if self.queues[stream]:
            raise Misuse("a stream records that has work left: wait for it")
        self.recording, self.is_invalidated = [], False
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        if recorded is None:
            raise Misuse("a stream does not record")
        if self.is_invalidated:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        handle = next(self._handles)
        self.graphs[handle] = recorded
        return OK, handle

    def cudaGraphInstantiate(self, graph, flags):
        self.num_recordings += 1
        handle = next(self._handles)
        self.executables[handle] = self.graphs[graph]
        return OK, handle

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        self.num_launches += 1
        for work in self.executables[executable]:
            self.enqueue(stream, work)
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        del self.executables[executable]
        return (OK,)

    def _run(self, stream: int) -> None:
        queue = self.queues[stream]
        while queue:
            queue.pop(0)()
