"""The commands of the calibration."""
