"""libmutoscope from Python, by ctypes: the runtime without onnxruntime's own Python package.

    from mutoscope.runtime.native import NativePipeline

    with NativePipeline.open("bundle") as pipeline:
        frames = pipeline.generate("a red circle moves left", seed=7).frames

It shows that bindings of the C header work, and is what the tests of the library use.
"""

from mutoscope.runtime.native.library import Library, NativeError
from mutoscope.runtime.native.pipeline import NativePipeline, NativeProgress, NativeVideo

__all__ = ["Library", "NativeError", "NativePipeline", "NativeProgress", "NativeVideo"]
