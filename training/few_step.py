"""Distils the denoiser into one that needs 4 steps and no second pass for guidance.

Progressive distillation with guidance inside the student, straight to the four timesteps that four
steps of the checkpoint's scheduler visit: from each of them the student takes one step to where the
guided teacher gets in several.

Source: Meng et al., On Distillation of Guided Diffusion Models (arXiv:2210.03142); Salimans and Ho,
Progressive Distillation for Fast Sampling of Diffusion Models (arXiv:2202.00512).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from training.checkpoint import GUIDANCE_SCALE
from training.loop import TrainingPlan, load_average, load_state, make_state, train
from training.unet import (
    CLIP_STATE_NAME,
    FEW_STEP_STATE_NAME,
    STEADY_WEIGHT,
    CaptionedLatents,
    ShortAttention,
    TrackedUNet,
    make_scheduler,
    make_unet,
    measure_background_change,
)

BATCH: Final = 16
TIMESTEPS: Final = (999, 749, 499, 249)
"""What 4 steps with trailing timesteps visit; the last step ends at the clean latents."""
TEACHER_STEPS: Final = 2
"""Steps of the teacher from one of them to the next."""

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy latents [B, C, F, h, w], timesteps [B] and text states [B, S, D] to the velocity."""


class Distillation:
    """Draws training batches and says how far the student is from its targets."""

    def __init__(self, data: CaptionedLatents, teacher: Denoiser) -> None:
        """Use the captioned latents and a denoiser in bfloat16, which stays as it is."""
        self.data, self.teacher = data, teacher
        self.alphas = make_scheduler().alphas_cumprod.float()

    def compute_loss(self, student: Denoiser, step: int) -> Tensor:
        """Return the loss of one batch of clips: the velocity's squared error, and unsteadiness."""
        rng = np.random.default_rng((9, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, cells, _, text = self.data.draw(rng, BATCH, still=False)
        places = torch.arange(len(clean)) % len(TIMESTEPS)
        timesteps = torch.tensor(TIMESTEPS)[places]
        following = torch.tensor((*TIMESTEPS[1:], -1))[places]
        alpha, sigma = self._find_scales(timesteps)
        noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            target = self._find_step(noisy, timesteps, following, text)
        velocity = student(noisy.bfloat16(), timesteps, text).float()
        unsteady = measure_background_change(alpha * noisy - sigma * velocity, cells)
        return (velocity - target).square().mean() + STEADY_WEIGHT * unsteady

    def _find_scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise, each [B, 1, 1, 1, 1]; a timestep of -1 is clean."""
        alphas = torch.where(timesteps < 0, 1.0, self.alphas[timesteps]).view(-1, 1, 1, 1, 1)
        return alphas.sqrt(), (1.0 - alphas).sqrt()

    def _find_step(
        self, noisy: Tensor, timesteps: Tensor, following: Tensor, text: Tensor
    ) -> Tensor:
        """The velocity with which one step of DDIM gets to where the guided teacher gets."""
        after = self._follow_teacher(noisy, timesteps, following, text)
        (alpha, sigma), (alpha_after, sigma_after) = map(self._find_scales, (timesteps, following))
        ratio = sigma_after / sigma
        clean = (after - ratio * noisy) / (alpha_after - ratio * alpha)
        return (alpha * noisy - clean) / sigma

    def _follow_teacher(
        self, noisy: Tensor, timesteps: Tensor, following: Tensor, text: Tensor
    ) -> Tensor:
        """The latents at `following` on the guided teacher's path (DDIM)."""
        both = torch.cat([text, self.data.encode([""]).expand_as(text)])
        stops = [
            timesteps + (following - timesteps) * index // TEACHER_STEPS
            for index in range(TEACHER_STEPS + 1)
        ]
        for now, then in itertools.pairwise(stops):
            velocity = self.teacher(noisy.bfloat16().repeat(2, 1, 1, 1, 1), now.repeat(2), both)
            with_text, without = velocity.float().chunk(2)
            velocity = without + GUIDANCE_SCALE * (with_text - without)
            (alpha, sigma), (alpha_then, sigma_then) = map(self._find_scales, (now, then))
            clean, noise = alpha * noisy - sigma * velocity, sigma * noisy + alpha * velocity
            noisy = alpha_then * clean + sigma_then * noise
        return noisy


def make_denoiser(unet: nn.Module, *, compiled: bool) -> Denoiser:
    """Return the denoiser as a function, compiled if asked for."""
    forward: Callable[..., Any] = torch.compile(unet) if compiled else unet
    return lambda noisy, timesteps, text: forward(noisy, timesteps, text, return_dict=False)[0]


def distil(state_dir: Path, minutes: float, learning_rate: float, *, compiled: bool) -> None:
    """Train the few-step denoiser, from the weights of the one that the clips gave."""
    torch.manual_seed(2)
    # Part of the compiler's cache key, so that another thread count compiles anew.
    inductor_config.cpp.threads = torch.get_num_threads()
    data = CaptionedLatents(state_dir)
    unet = make_unet()
    load_average(TrackedUNet(unet), state_dir / CLIP_STATE_NAME)
    unet.set_attn_processor(ShortAttention())
    teacher = copy.deepcopy(unet).bfloat16().eval().requires_grad_(False)
    distillation = Distillation(data, make_denoiser(teacher, compiled=compiled))
    students: dict[int, Denoiser] = {}

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        if id(model) not in students:
            students[id(model)] = make_denoiser(model, compiled=compiled)
        return distillation.compute_loss(students[id(model)], step)

    plan = TrainingPlan(minutes=minutes, learning_rate=learning_rate, average_decay=0.99)
    state = make_state(unet, plan)
    path = state_dir / FEW_STEP_STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)
