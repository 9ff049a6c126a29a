"""Fixtures of the training's tests: an untrained denoiser with motion, and what it takes."""

import pytest
import torch

from training.motion_start import list_motion_modules
from training.unet import make_unet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    unet = make_unet().eval().requires_grad_(False)
    for module in list_motion_modules(unet):
        torch.nn.init.normal_(module.proj_out.weight, std=0.05)
    return unet


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 3, 8, 8, generator=generator)
    return sample, torch.tensor([10, 900]), torch.randn(2, 32, 128, generator=generator)
