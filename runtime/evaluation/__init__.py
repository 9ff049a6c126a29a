"""Temporal consistency of clips: flicker, warping error, identity drift, and joins.

All of it needs OpenCV (mutoscope[evaluate]).
"""
