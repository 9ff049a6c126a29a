"""The runtime: a bundle becomes a video, with numpy and onnxruntime only."""

__version__ = "0.1.0"
