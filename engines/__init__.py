"""Engines: they run one graph on one device, and know tensors but nothing of video."""
