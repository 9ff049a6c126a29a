"""Calibration: what a change of precision costs in quality, and the figures that say so."""
