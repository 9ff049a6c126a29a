"""The distillation of the few-step denoiser: its targets, its own latents, its background."""

import zlib

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from training import few_step
from training.checkpoint import GUIDANCE_SCALE
from training.few_step import (
    OBJECT_WEIGHT,
    STEADY_WEIGHT,
    STEPS_BETWEEN_CLIPS,
    TEACHER_STEPS,
    TIMESTEPS,
    Distillation,
    find_objects,
)
from training.unet import make_scheduler

SHAPE = (16, 4, 3, 8, 8)
STEP_TOLERANCE = 2e-5
"""Float32 rounding over three steps on latents of unit size."""


class Captions:
    """Clips and text states as numbers, in place of the trained encoders."""

    def draw(self, rng, count, *, still, often):
        clean = torch.from_numpy(rng.standard_normal((count, *SHAPE[1:]), dtype=np.float32))
        captions = [f"a shape {rng.integers(1000)}" for _ in range(count)]
        return clean, torch.zeros((count, 1, *SHAPE[2:])), torch.zeros(count), captions

    def encode(self, captions):
        numbers = [zlib.crc32(caption.encode()) / 2**32 if caption else 0.0 for caption in captions]
        return torch.tensor(numbers).view(-1, 1, 1).expand(-1, 2, 4)


def predict(noisy, timesteps, text):
    """Return a velocity that depends on all three."""
    shift = text.float().mean(dim=(1, 2)) + timesteps.float() / 2000.0
    return 0.3 * noisy.float() + shift.view(-1, 1, 1, 1, 1)


def predict_alone(noisy, timesteps, text, deep):
    """Return a velocity that also depends on the deep features."""
    features = deep.mean(dim=(1, 2, 3)).view(-1, SHAPE[2]).mean(dim=1)
    return predict(noisy, timesteps, text) + features.view(-1, 1, 1, 1, 1)


class Student:
    """Stands in for a UNet: `predict` with an error, and features that tell the run they are of."""

    def __init__(self, monkeypatch, error=0.0):
        self.error, self.runs = error, []
        monkeypatch.setattr(few_step, "run_whole", self.run_whole)
        monkeypatch.setattr(few_step, "run_shallow", self.run_shallow)

    def run_whole(self, unet, noisy, timesteps, text):
        assert unet is self
        self.runs.append(("whole", timesteps.tolist()))
        deep = noisy.float().transpose(1, 2).flatten(0, 1)
        return predict(noisy, timesteps, text) + self.error, deep

    def run_shallow(self, unet, noisy, timesteps, text, deep):
        assert unet is self
        self.runs.append(("shallow", timesteps.tolist()))
        return predict_alone(noisy, timesteps, text, deep) + self.error


@pytest.fixture
def distillation():
    return Distillation(Captions(), predict)


def step_with_diffusers(noisy, text, timestep, num_steps, *, guided):
    """One step of diffusers' DDIM scheduler, with `predict` as the model."""
    scheduler: DDIMScheduler = make_scheduler()
    scheduler.set_timesteps(num_steps)
    timesteps = torch.full((len(noisy),), timestep)
    sample = noisy.bfloat16()
    velocity = predict(sample, timesteps, text)
    if guided:
        without = predict(sample, timesteps, torch.zeros_like(text))
        velocity = without + GUIDANCE_SCALE * (velocity - without)
    return scheduler.step(velocity, timestep, noisy).prev_sample


def test_timesteps_are_those_of_the_scheduler():
    scheduler = make_scheduler()
    scheduler.set_timesteps(len(TIMESTEPS))
    assert scheduler.timesteps.tolist() == list(TIMESTEPS)


@pytest.mark.parametrize("place", range(len(TIMESTEPS)))
def test_target_gets_in_one_step_to_where_the_guided_teacher_gets(distillation, place):
    generator = torch.Generator().manual_seed(place)
    noisy = torch.randn((2, *SHAPE[1:]), generator=generator)
    text = torch.randn((2, 2, 4), generator=generator)
    timestep = TIMESTEPS[place]
    following = (*TIMESTEPS[1:], -1)[place]
    expected = noisy
    for index in range(TEACHER_STEPS):
        now = timestep + (following - timestep) * index // TEACHER_STEPS
        expected = step_with_diffusers(
            expected, text, now, len(TIMESTEPS) * TEACHER_STEPS, guided=True
        )
    now, then = torch.full((2,), timestep), torch.full((2,), following)
    velocity = distillation._find_step(noisy, now, then, text)
    found = distillation._move(noisy, velocity, now, then)
    torch.testing.assert_close(found, expected, atol=STEP_TOLERANCE, rtol=0.0)


def test_students_own_latents_are_those_that_its_steps_visit(distillation, monkeypatch):
    noise = torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(3))
    text = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(4))
    visited = distillation.roll_out(Student(monkeypatch), noise, text)
    assert len(visited) == len(TIMESTEPS)
    torch.testing.assert_close(visited[0], noise)
    for place in (0, 1):
        expected = step_with_diffusers(
            visited[place], text, TIMESTEPS[place], len(TIMESTEPS), guided=False
        )
        torch.testing.assert_close(visited[place + 1], expected, atol=STEP_TOLERANCE, rtol=0.0)
    deep = visited[1].bfloat16().float().transpose(1, 2).flatten(0, 1)
    timesteps = torch.full((4,), TIMESTEPS[2])
    velocity = predict_alone(visited[2].bfloat16(), timesteps, text, deep)
    expected = distillation._move(visited[2], velocity, timesteps, torch.full((4,), TIMESTEPS[3]))
    torch.testing.assert_close(visited[3], expected, atol=STEP_TOLERANCE, rtol=0.0)


def test_most_batches_start_from_the_students_own_latents(distillation, monkeypatch):
    student = Student(monkeypatch)
    distillation.compute_loss(student, 0)
    assert student.runs == [("whole", list(TIMESTEPS) * 4)]
    student.runs.clear()
    distillation.compute_loss(student, STEPS_BETWEEN_CLIPS - 1)
    first, second, third, fourth = TIMESTEPS
    assert student.runs == [
        ("whole", [first] * 4),
        ("whole", [second] * 4),
        ("shallow", [third] * 4),
        ("whole", [first] * 4 + [second] * 4),
        ("shallow", [third] * 4 + [fourth] * 4),
    ]


def test_shallow_steps_are_trained_on_the_features_of_their_own_clips(distillation, monkeypatch):
    student = Student(monkeypatch)
    noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(6))
    text = torch.randn(SHAPE[0], 2, 4, generator=torch.Generator().manual_seed(7))
    places = torch.arange(4).repeat_interleave(4)
    velocity = distillation._predict_reusing(student, noisy, places, text)
    timesteps = torch.tensor(TIMESTEPS)[places]
    deep = noisy[4:8].bfloat16().float().transpose(1, 2).flatten(0, 1)
    for first in (8, 12):
        rows = slice(first, first + 4)
        expected = predict_alone(noisy[rows].bfloat16(), timesteps[rows], text[rows], deep)
        torch.testing.assert_close(velocity[rows], expected)


def test_teacher_is_told_a_background_where_the_caption_names_none(monkeypatch):
    told = []

    class Listening(Captions):
        def encode(self, captions):
            told.append(captions)
            return super().encode(captions)

    Distillation(Listening(), predict).compute_loss(Student(monkeypatch), 0)
    student, teacher, empty = told[0], told[1], told[-1]
    assert teacher == [f"{caption} on a gray background" for caption in student]
    assert empty == [""]


def test_error_that_changes_the_background_over_time_costs_more(distillation, monkeypatch):
    over_time = torch.tensor([1.0, -1.0, 0.0]).view(1, 1, 3, 1, 1).expand(SHAPE)
    over_place = torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 1, 1, 8) * over_time.abs()
    flickering = distillation.compute_loss(Student(monkeypatch, over_time), 0)
    spotted = distillation.compute_loss(Student(monkeypatch, over_place), 0)
    assert float(flickering) > float(spotted) + 0.1 * STEADY_WEIGHT


def test_error_in_the_object_costs_more(distillation, monkeypatch):
    object_half = torch.ones(SHAPE)
    object_half[..., 4:] = 0.0
    monkeypatch.setattr(few_step, "find_objects", lambda clean: object_half[:, :1])
    right, inside, outside = (
        float(distillation.compute_loss(Student(monkeypatch, error), 0))
        for error in (0.0, 10.0 * object_half, 10.0 * (1.0 - object_half))
    )
    assert (inside - right) / (outside - right) == pytest.approx(OBJECT_WEIGHT, rel=0.1)


def test_objects_are_the_half_that_differs_most():
    clean = torch.zeros(1, 4, 2, 8, 8)
    clean[:, :, 0] = 3.0
    clean[:, 1, :, 2:5, 2:6] = -2.0
    noise = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    objects = find_objects(clean + noise)
    assert bool((objects[:, :, :, 2:5, 2:6] == 1.0).all())
    assert objects.mean() == pytest.approx(0.5, abs=0.02)
