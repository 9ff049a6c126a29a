"""The training loop all three stages share: bfloat16 compute, float32 weights, a time budget."""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

WARMUP: Final = 0.03
"""Fraction of the budget over which the learning rate rises."""
SECONDS_BETWEEN_SAVES: Final = 120.0
SECONDS_BETWEEN_LINES: Final = 20.0


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how hard to train."""

    minutes: float
    learning_rate: float
    average_decay: float = 0.999
    """Decay of the running average of the weights, per step."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass
class TrainingState:
    """What a run needs to go on where it stopped."""

    weights: nn.Module
    """The float32 weights that the optimizer changes."""
    average: nn.Module
    """Their running average, float32: what a checkpoint gets."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    """Time spent training, over all runs."""


ComputeLoss = Callable[[nn.Module, int, float], Tensor]
"""Takes the bfloat16 model, the step and the progress in [0, 1]; returns the float32 loss."""


def make_state(model: nn.Module, plan: TrainingPlan) -> TrainingState:
    """Return a fresh state around `model`, whose weights it owns from now on."""
    average = copy.deepcopy(model).requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    return TrainingState(model, average, optimizer)


def save_state(state: TrainingState, path: Path) -> None:
    """Write the state to `path`, whole or not at all."""
    partial = path.with_suffix(".partial")
    content = {
        "weights": state.weights.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
    }
    torch.save(content, partial)
    partial.replace(path)


def load_state(state: TrainingState, path: Path) -> None:
    """Read a saved state into `state`, in place."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    state.weights.load_state_dict(content["weights"])
    state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.seconds = content["step"], content["seconds"]


def load_average(model: nn.Module, path: Path) -> None:
    """Read only the averaged weights of a saved state into `model`, in place."""
    model.load_state_dict(torch.load(path, weights_only=True)["average"])


def scale_learning_rate(progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1], as a multiple of the peak."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def train(state: TrainingState, compute_loss: ComputeLoss, plan: TrainingPlan, path: Path) -> None:
    """Train until the plan's minutes are spent or SIGTERM comes; save on the way and at the end.

    The forward and backward pass run on a bfloat16 copy of the weights: on a CPU with AMX that is
    several times faster than float32, and the float32 weights keep the small updates.
    """
    weights: list[Tensor] = list(state.weights.parameters())
    average: list[Tensor] = list(state.average.parameters())
    model = copy.deepcopy(state.weights).bfloat16().train()
    copies: list[Tensor] = list(model.parameters())
    begin, last_save, last_line = time.monotonic(), time.monotonic(), 0.0
    earlier, smooth_loss = state.seconds, math.nan
    stopped = _watch_termination()
    while state.seconds < plan.minutes * 60.0 and not stopped:
        progress = state.seconds / (plan.minutes * 60.0)
        for group in state.optimizer.param_groups:
            group["lr"] = plan.learning_rate * scale_learning_rate(progress)
        with torch.no_grad():
            torch._foreach_copy_(copies, weights)
        loss = compute_loss(model, state.step, progress)
        loss.backward()
        _move_gradients(copies, weights)
        nn.utils.clip_grad_norm_(weights, plan.max_grad_norm)
        state.optimizer.step()
        decay = min(plan.average_decay, (1.0 + state.step) / (10.0 + state.step))
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1.0 - decay)
        state.step += 1
        now = time.monotonic()
        state.seconds = earlier + now - begin
        value = loss.item()
        smooth_loss = value if math.isnan(smooth_loss) else 0.98 * smooth_loss + 0.02 * value
        if now - last_line > SECONDS_BETWEEN_LINES:
            last_line = now
            print(
                f"{state.seconds:7.0f} s  step {state.step:6d}  loss {smooth_loss:.4f}",
                file=sys.stderr,
                flush=True,
            )
        if now - last_save > SECONDS_BETWEEN_SAVES:
            last_save = now
            save_state(state, path)
    save_state(state, path)


def _watch_termination() -> list[int]:
    """Return a list that gets the signal's number when the process is asked to end."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    return stopped


def _move_gradients(copies: list[Tensor], weights: list[Tensor]) -> None:
    """Give the float32 weights the gradients of their bfloat16 copies, and clear those."""
    for copied, weight in zip(copies, weights, strict=True):
        weight.grad = None if copied.grad is None else copied.grad.float()
        copied.grad = None
