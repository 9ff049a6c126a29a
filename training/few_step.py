"""Distils the denoiser into one that needs 4 steps and no second pass for guidance.

Progressive distillation with guidance inside the student, straight to the four timesteps that four
steps of the checkpoint's scheduler visit: from each of them the student takes one step to where the
guided teacher gets in several. One batch in four starts from noised clips, the others from
what the student itself makes of pure noise, whose mistakes it meets only there. In these the last
two steps run the shallow part alone, on deep features of the second: the student learns to do with
it. Where a caption names no background, the teacher is told one all the same.

Source: Meng et al., On Distillation of Guided Diffusion Models (arXiv:2210.03142); Salimans and Ho,
Progressive Distillation for Fast Sampling of Diffusion Models (arXiv:2202.00512); Ma et al.,
DeepCache (arXiv:2312.00858).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import UNetMotionModel
from torch import Tensor, nn

from training.checkpoint import GUIDANCE_SCALE
from training.clips import name_background
from training.loop import TrainingPlan, load_average, load_state, make_state, train
from training.shallow import run_shallow, run_whole
from training.unet import (
    CLIP_STATE_NAME,
    FEW_STEP_STATE_NAME,
    CaptionedLatents,
    ShortAttention,
    TrackedUNet,
    make_scheduler,
    make_unet,
    measure_background_change,
)

BATCH: Final = 16
LATE_MOTIONS: Final = {"orbits": 0.35}
"""Fraction of samples among orbits alone: nearly all clips that 4 steps got wrong were orbits."""
TIMESTEPS: Final = (999, 749, 499, 249)
"""What 4 steps with trailing timesteps visit; the last step ends at the clean latents."""
STEPS_BETWEEN_CLIPS: Final = 4
"""One batch in so many starts from noised clips; those keep what 1 and 2 steps need."""
REUSED_STEPS: Final = (2, 3)
"""The steps that run the shallow part alone; step 1 makes the features for both."""
TEACHER_STEPS: Final = 2
"""Steps of the teacher from one of them to the next."""
OBJECT_WEIGHT: Final = 3.0
"""Weight of a cell that may show the object, whose shape and colour the background outnumbers."""
STEADY_WEIGHT: Final = 10.0
"""Weight of the background's change over time: guidance makes the teacher's some four times what
the clips trained it to, and nothing else in the loss holds against that."""

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy latents [B, C, F, h, w], timesteps [B] and text states [B, S, D] to the velocity."""


class Distillation:
    """Draws training batches and says how far the student is from its targets."""

    def __init__(self, data: CaptionedLatents, teacher: Denoiser) -> None:
        """Use the captioned latents and a denoiser in bfloat16, which stays as it is."""
        self.data, self.teacher = data, teacher
        self.alphas = make_scheduler().alphas_cumprod.float()

    def compute_loss(self, student: UNetMotionModel, step: int) -> Tensor:
        """Return the loss of one batch of clips: the velocity's squared error, and unsteadiness."""
        rng = np.random.default_rng((9, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, _, _, captions = self.data.draw(rng, BATCH, still=False, often=LATE_MOTIONS)
        if step % STEPS_BETWEEN_CLIPS:
            count = BATCH // len(TIMESTEPS)
            noise = torch.randn((count, *clean.shape[1:]), generator=generator)
            visited = self.roll_out(student, noise, self.data.encode(captions[:count]))
            places = torch.arange(len(TIMESTEPS)).repeat_interleave(count)
            noisy, captions = torch.cat(visited), captions[:count] * len(TIMESTEPS)
            velocity = self._predict_reusing(student, noisy, places, self.data.encode(captions))
        else:
            places = torch.arange(len(clean)) % len(TIMESTEPS)
            timesteps = torch.tensor(TIMESTEPS)[places]
            alpha, sigma = self._find_scales(timesteps)
            noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
            text = self.data.encode(captions)
            velocity = run_whole(student, noisy.bfloat16(), timesteps, text)[0].float()
        # The teacher is told what the student has to know.
        told = self.data.encode([name_background(caption) for caption in captions])
        return self._measure_loss(velocity, noisy, places, told)

    @torch.no_grad()
    def roll_out(self, student: UNetMotionModel, noisy: Tensor, text: Tensor) -> list[Tensor]:
        """Return the latents before each step of the student, each as large as the first.

        Args:
            student: The denoiser that makes the steps, the last ones with its shallow part.
            noisy: Pure noise, float32 [B, C, F, h, w].
            text: Text states [B, S, D].
        """
        visited, deep = [noisy], torch.empty(0)
        for place, (now, then) in enumerate(itertools.pairwise(TIMESTEPS)):
            timesteps = torch.full((len(noisy),), now)
            if place in REUSED_STEPS:
                velocity = run_shallow(student, noisy.bfloat16(), timesteps, text, deep)
            else:
                velocity, deep = run_whole(student, noisy.bfloat16(), timesteps, text)
            noisy = self._move(noisy, velocity.float(), timesteps, torch.full_like(timesteps, then))
            visited.append(noisy)
        return visited

    def _predict_reusing(
        self, student: UNetMotionModel, noisy: Tensor, places: Tensor, text: Tensor
    ) -> Tensor:
        """The velocities of what `roll_out` visited; the whole part learns what is reused too."""
        timesteps = torch.tensor(TIMESTEPS)[places]
        later = sum(places == place for place in REUSED_STEPS).bool()  # type: ignore[union-attr]
        whole, deep = run_whole(student, noisy[~later].bfloat16(), timesteps[~later], text[~later])
        # Rows of the features are frames of clips; those of the last whole step are reused.
        count = int((places == REUSED_STEPS[0]).sum()) * noisy.shape[2]
        deep = deep[-count:].repeat(len(REUSED_STEPS), 1, 1, 1)
        shallow = run_shallow(student, noisy[later].bfloat16(), timesteps[later], text[later], deep)
        return torch.cat([whole, shallow]).float()

    def _measure_loss(
        self, velocity: Tensor, noisy: Tensor, places: Tensor, text: Tensor
    ) -> Tensor:
        """How far the velocities are from what the teacher, told `text`, makes of the latents."""
        timesteps = torch.tensor(TIMESTEPS)[places]
        following = torch.tensor((*TIMESTEPS[1:], -1))[places]
        alpha, sigma = self._find_scales(timesteps)
        with torch.no_grad():
            target = self._find_step(noisy, timesteps, following, text)
            cells = find_objects(alpha * noisy - sigma * target)
        unsteady = measure_background_change(alpha * noisy - sigma * velocity, cells)
        weight = 1.0 + (OBJECT_WEIGHT - 1.0) * cells
        return (weight * (velocity - target).square()).mean() + STEADY_WEIGHT * unsteady

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
            noisy = self._move(noisy, velocity, now, then)
        return noisy

    def _move(self, noisy: Tensor, velocity: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """The latents after one step of DDIM."""
        (alpha, sigma), (alpha_then, sigma_then) = map(self._find_scales, (now, then))
        clean, noise = alpha * noisy - sigma * velocity, sigma * noisy + alpha * velocity
        return alpha_then * clean + sigma_then * noise


def find_objects(clean: Tensor) -> Tensor:
    """Return which cells may show an object: the half of each frame that differs most.

    Args:
        clean: Latents without noise, float32 [B, C, F, h, w].

    Returns:
        float32 [B, 1, F, h, w], 1 where an object may be.
    """
    usual = clean.flatten(3).median(dim=3).values[..., None, None]
    distance = (clean - usual).square().sum(dim=1, keepdim=True)
    middle = distance.flatten(3).median(dim=3).values[..., None, None]
    return (distance > middle).float()


def distil(state_dir: Path, minutes: float, learning_rate: float) -> None:
    """Train the few-step denoiser, from the weights of the one that the clips gave."""
    torch.manual_seed(2)
    data = CaptionedLatents(state_dir)
    unet = make_unet()
    load_average(TrackedUNet(unet), state_dir / CLIP_STATE_NAME)
    unet.set_attn_processor(ShortAttention())
    teacher = copy.deepcopy(unet).bfloat16().eval().requires_grad_(False)
    distillation = Distillation(
        data, lambda noisy, timesteps, text: teacher(noisy, timesteps, text, return_dict=False)[0]
    )

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        assert isinstance(model, UNetMotionModel)
        return distillation.compute_loss(model, step)

    plan = TrainingPlan(minutes=minutes, learning_rate=learning_rate, average_decay=0.99)
    state = make_state(unet, plan)
    path = state_dir / FEW_STEP_STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)
