"""The runtime: a bundle becomes a video, with numpy and onnxruntime only.

from mutoscope.runtime import VideoPipeline

with VideoPipeline.open("bundle") as pipeline:
    video = pipeline.generate("a red circle moves left", seed=7, num_inference_steps=8)
    video.save("out.mp4")
"""

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import (
    BundleError,
    CancelledError,
    EngineError,
    ExecutionProviderError,
    MissingExtraError,
    MutoscopeError,
    OutputError,
    ParameterError,
    ScheduleError,
)
from mutoscope.runtime.latents_files import SavedLatents, load_latents, save_latents
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.preview import PreviewInfo
from mutoscope.runtime.sampler import StepInfo, denoise
from mutoscope.runtime.schedule import ScheduleTable
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.video import Video

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "CancelledError",
    "EngineError",
    "ExecutionProviderError",
    "MissingExtraError",
    "MutoscopeError",
    "NoiseGenerator",
    "OutputError",
    "ParameterError",
    "PreviewInfo",
    "SavedLatents",
    "ScheduleError",
    "ScheduleTable",
    "Settings",
    "StepInfo",
    "Timings",
    "Video",
    "VideoPipeline",
    "__version__",
    "denoise",
    "load_latents",
    "save_latents",
]
