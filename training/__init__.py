"""Trains the moving-shapes checkpoint: a small text-to-video model of the AnimateDiff kind."""
