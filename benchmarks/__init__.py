"""Measurements of the checkpoint and of the runtime."""
