"""Export: a trained checkpoint becomes a bundle. The only part that needs PyTorch."""
