"""Memory on the GPU, the stream that orders its work, and recorded work, through cuda-bindings.

Arrays are copied from and to ordinary memory: CUDA brings that through page-locked memory of its
own, and what goes in and out of a graph is little beside what it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mutoscope.engines.cuda_device import check_cuda
from mutoscope.engines.engine import Array
from mutoscope.engines.errors import EngineError

if TYPE_CHECKING:
    from cuda.bindings.runtime import cudaGraphExec_t, cudaStream_t


class CudaStream:
    """A queue of work for the GPU: what is put into it runs in this order."""

    def __init__(self) -> None:
        """Make a stream beside the default one; raises `EngineError`."""
        from cuda.bindings import runtime

        error, stream = runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
        check_cuda("making a CUDA stream", error)
        self.stream: cudaStream_t = stream
        self._kept: list[Array] = []

    @property
    def handle(self) -> int:
        """What libraries take."""
        return int(self.stream)

    def keep(self, array: Array) -> None:
        """Hold on to an array that work in the stream may read, until all is done."""
        self._kept.append(array)

    def synchronize(self) -> None:
        """Wait until all is done; raises the `EngineError` of what failed on the way."""
        from cuda.bindings import runtime

        (error,) = runtime.cudaStreamSynchronize(self.stream)
        self._kept.clear()
        check_cuda("running on the GPU", error)

    def close(self) -> None:
        """Give it back; once."""
        from cuda.bindings import runtime

        (error,) = runtime.cudaStreamDestroy(self.stream)
        check_cuda("giving back a CUDA stream", error)


class DeviceBuffer:
    """Memory on the GPU that grows and is kept.

    Attributes:
        address: Where it lies on the GPU; 0 before it first grows.
        size_bytes: How much it is.
    """

    def __init__(self, stream: CudaStream) -> None:
        """Make an empty buffer, used by the work of a stream."""
        self.address = 0
        self.size_bytes = 0
        self._stream = stream

    def grow(self, size_bytes: int) -> None:
        """Have at least this many bytes; what was in it is lost if it moves, and it is zero then.

        Raises:
            EngineError: The GPU has no room; the buffer is empty then.
        """
        from cuda.bindings import runtime

        # An address is needed for an array without elements too.
        size_bytes = max(size_bytes, 1)
        if size_bytes <= self.size_bytes:
            return
        self.close()
        error, address = runtime.cudaMalloc(size_bytes)
        check_cuda(f"taking {size_bytes / 2**20:.1f} MiB of the GPU's memory", error)
        self.address, self.size_bytes = int(address), size_bytes
        (error,) = runtime.cudaMemsetAsync(self.address, 0, size_bytes, self._stream.stream)
        check_cuda("clearing the GPU's memory", error)

    def copy_from(self, array: Array) -> None:
        """Put the bytes of an array at the start, in the order of the stream."""
        from cuda.bindings import runtime

        contiguous = np.ascontiguousarray(array)
        self._check_size(contiguous)
        # Where the GPU reads ordinary memory itself, it may do so after this returns.
        self._stream.keep(contiguous)
        (error,) = runtime.cudaMemcpyAsync(
            self.address,
            contiguous.ctypes.data,
            contiguous.nbytes,
            runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
            self._stream.stream,
        )
        check_cuda("copying to the GPU", error)

    def copy_to(self, array: Array) -> None:
        """Fill a C-contiguous array from the start, in the order of the stream."""
        from cuda.bindings import runtime

        self._check_size(array)
        (error,) = runtime.cudaMemcpyAsync(
            array.ctypes.data,
            self.address,
            array.nbytes,
            runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost,
            self._stream.stream,
        )
        check_cuda("copying from the GPU", error)

    def close(self) -> None:
        """Give the memory back; nothing if it has none."""
        from cuda.bindings import runtime

        if self.address:
            address, self.address, self.size_bytes = self.address, 0, 0
            (error,) = runtime.cudaFree(address)
            check_cuda("giving back the GPU's memory", error)

    def _check_size(self, array: Array) -> None:
        if array.nbytes > self.size_bytes:
            raise EngineError(f"{array.nbytes} bytes do not fit a buffer of {self.size_bytes}")


class CudaGraph:
    """Work that was recorded from a stream, to be played again at once."""

    def __init__(self, stream: CudaStream, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts into the stream, which does not run; raises `EngineError`."""
        from cuda.bindings import runtime

        # Other threads may go on using CUDA meanwhile.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        (error,) = runtime.cudaStreamBeginCapture(stream.stream, mode)
        check_cuda("recording a CUDA graph", error)
        is_recorded = False
        try:
            enqueue()
            is_recorded = True
        finally:
            # Also after an error, for the stream runs nothing while it records.
            error, graph = runtime.cudaStreamEndCapture(stream.stream)
            if not is_recorded and graph is not None:
                runtime.cudaGraphDestroy(graph)
        check_cuda("recording a CUDA graph", error)
        error, executable = runtime.cudaGraphInstantiate(graph, 0)
        (destroy_error,) = runtime.cudaGraphDestroy(graph)
        check_cuda("preparing a CUDA graph", error)
        check_cuda("giving back a CUDA graph", destroy_error)
        self._stream = stream
        self._executable: cudaGraphExec_t = executable

    def launch(self) -> None:
        """Put the recorded work into its stream."""
        from cuda.bindings import runtime

        (error,) = runtime.cudaGraphLaunch(self._executable, self._stream.stream)
        check_cuda("running a CUDA graph", error)

    def close(self) -> None:
        """Give it back; once."""
        from cuda.bindings import runtime

        (error,) = runtime.cudaGraphExecDestroy(self._executable)
        check_cuda("giving back a CUDA graph", error)
