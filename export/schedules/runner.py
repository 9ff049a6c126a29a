"""Drive a scheduler of diffusers as a pipeline drives it, on tensors of the caller's choice.

All knowledge of how schedulers are called stands here: which arguments set_timesteps and step take,
where their random numbers come from, and where they keep tensors between steps.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import torch

from mutoscope.runtime.errors import ParameterError, ScheduleError

# What a scheduler may raise on a configuration or a step count that it does not support. The
# schedulers are others' code and have no exceptions of their own.
SCHEDULER_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# What the schedulers call the estimate of the clean sample in the output of a step.
ESTIMATE_NAMES = ("pred_original_sample", "denoised")

DrawNoise: TypeAlias = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
# Where a tensor stands in the scheduler's state: an attribute, then keys and indices.
StatePath: TypeAlias = tuple[Any, ...]


class SchedulerRunner:
    """A private copy of a scheduler, with its time steps set.

    The state that matters is `scheduler` and `carried`: what the pipeline, not the scheduler, hands
    from one step to the next.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int,
        set_timesteps_kwargs: Mapping[str, Any],
        step_kwargs: Mapping[str, Any],
    ) -> None:
        """Copy the scheduler and set its time steps.

        Raises:
            ParameterError: A keyword argument that the scheduler does not take.
            ScheduleError: The scheduler refuses the step count or cannot be used at all.
        """
        self.name = type(scheduler).__name__
        self.scheduler = _copy_scheduler(scheduler)
        self.carried: dict[str, torch.Tensor | None] = {}
        self._step_kwargs = dict(step_kwargs)
        # CogVideoXDPMScheduler leaves it to the pipeline to keep its previous estimate.
        parameters = inspect.signature(self.scheduler.step).parameters
        self._keeps_estimate = "old_pred_original_sample" in parameters
        _check_keywords(f"{self.name}.step", self.scheduler.step, step_kwargs)
        self._set_timesteps(num_inference_steps, set_timesteps_kwargs)
        self.timesteps = list(self.scheduler.timesteps)
        if not self.timesteps:
            raise ScheduleError(f"{self.name} has no time steps; it needs at least one")

    @property
    def init_noise_sigma(self) -> float:
        """Start value of the latents per unit of noise; schedulers without one mean 1."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def scale_model_input(self, index: int, sample: torch.Tensor) -> torch.Tensor:
        """What the model sees of a sample. Must be called before each step."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return sample
        try:
            scaled: torch.Tensor = self.scheduler.scale_model_input(sample, self.timesteps[index])
        except SCHEDULER_FAULTS as err:
            self._fail(index, err)
        return scaled

    def step(self, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the sample after one step."""
        result = self._call_step(index, model_output, sample, return_dict=False)
        if self._keeps_estimate:
            self.carried["old_pred_original_sample"] = result[1]
        prev_sample: torch.Tensor = result[0]
        return prev_sample

    def estimate(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Take one step; return what it says of the clean sample, each None if it does not.

        Returns:
            The estimate in the scheduler's output, and what its `convert_model_output` returned:
            the estimate of the clean sample too, or of the noise, as the solver is set up.
        """
        converted: list[torch.Tensor] = []
        convert = getattr(self.scheduler, "convert_model_output", None)

        def record(*args: Any, **kwargs: Any) -> torch.Tensor:
            converted.append(convert(*args, **kwargs))  # type: ignore[misc]  # set where called
            return converted[-1]

        if convert is not None:
            self.scheduler.convert_model_output = record
        try:
            result = self._call_step(index, model_output, sample, return_dict=True)
        finally:
            vars(self.scheduler).pop("convert_model_output", None)
        estimates = [getattr(result, name, None) for name in ESTIMATE_NAMES]
        estimate = next((found for found in estimates if found is not None), None)
        if self._keeps_estimate:
            # This one returns a tuple, whatever return_dict says.
            estimate = self.carried["old_pred_original_sample"] = result[1]
        return estimate, converted[0] if converted else None

    def find_state(self, shape: torch.Size) -> Iterator[tuple[StatePath, torch.Tensor]]:
        """Every tensor of this shape that lives from one step to the next."""
        yield from _find_tensors(vars(self.scheduler), shape, ("scheduler",))
        yield from _find_tensors(self.carried, shape, ("carried",))

    def replace_state(self, path: StatePath, tensor: torch.Tensor) -> None:
        """Put another tensor where find_state found one."""
        owner: Any = vars(self.scheduler) if path[0] == "scheduler" else self.carried
        _replace(owner, path[1:], tensor)

    @contextmanager
    def noise_from(self, draw: DrawNoise) -> Iterator[None]:
        """Within the context, the scheduler's randn_tensor calls return draw(shape, dtype)."""

        def randn_tensor(shape: Any, *_: Any, dtype: Any = None, **__: Any) -> torch.Tensor:
            return draw(tuple(shape), dtype or torch.float32)

        modules = [sys.modules[base.__module__] for base in type(self.scheduler).__mro__]
        modules = [module for module in modules if hasattr(module, "randn_tensor")]
        originals = [vars(module)["randn_tensor"] for module in modules]
        try:
            for module in modules:
                vars(module)["randn_tensor"] = randn_tensor
            yield
        finally:
            for module, original in zip(modules, originals, strict=True):
                vars(module)["randn_tensor"] = original

    def _call_step(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, *, return_dict: bool
    ) -> Any:
        """What the scheduler's step returns."""
        kwargs = dict(self._step_kwargs, return_dict=return_dict)
        if self._keeps_estimate:
            kwargs["old_pred_original_sample"] = self.carried.get("old_pred_original_sample")
            kwargs["timestep_back"] = self.timesteps[index - 1] if index else None
        try:
            return self.scheduler.step(
                model_output=model_output, timestep=self.timesteps[index], sample=sample, **kwargs
            )
        except SCHEDULER_FAULTS as err:
            self._fail(index, err)

    def _set_timesteps(self, num_inference_steps: int, kwargs: Mapping[str, Any]) -> None:
        set_timesteps = self.scheduler.set_timesteps
        _check_keywords(f"{self.name}.set_timesteps", set_timesteps, kwargs)
        custom = [name for name in ("sigmas", "timesteps") if kwargs.get(name) is not None]
        # As retrieve_timesteps of the pipelines: own sigmas or timesteps take the place of a count.
        count = {} if custom else {"num_inference_steps": num_inference_steps}
        try:
            set_timesteps(**count, **kwargs)
        except SCHEDULER_FAULTS as err:
            raise ScheduleError(
                f"{self.name} refuses {num_inference_steps} steps ({_one_line(err)})"
            ) from err
        for name in custom:
            if len(kwargs[name]) != num_inference_steps:
                raise ParameterError(
                    f"{name} has {len(kwargs[name])} values and num_inference_steps is "
                    f"{num_inference_steps}; they must agree"
                )

    def _fail(self, index: int, err: BaseException) -> NoReturn:
        raise ScheduleError(
            f"{self.name} fails in step {index + 1} of {len(self.timesteps)} ({_one_line(err)})"
        ) from err


def _copy_scheduler(scheduler: Any) -> Any:
    """A copy that can be stepped without a trace in the caller's scheduler."""
    missing = [name for name in ("set_timesteps", "step") if not hasattr(scheduler, name)]
    if missing:
        raise ScheduleError(
            f"{type(scheduler).__name__} has no {' and no '.join(missing)}, so it is no scheduler "
            "that a table can hold: use for example DDIMScheduler"
        )
    return copy.deepcopy(scheduler)


def _check_keywords(name: str, function: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise if a function does not take one of the keyword arguments."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            known = ", ".join(parameters)
            raise ParameterError(f"{name} takes no {key!r}; it takes {known}")


def _find_tensors(
    owner: Any, shape: torch.Size, path: StatePath
) -> Iterator[tuple[StatePath, torch.Tensor]]:
    """Tensors of a shape within nested mappings, lists, tuples and inner schedulers."""
    if isinstance(owner, torch.Tensor):
        if owner.shape == shape:
            yield path, owner
    elif isinstance(owner, Mapping):
        for key, value in owner.items():
            yield from _find_tensors(value, shape, (*path, key))
    elif isinstance(owner, (list, tuple)):
        for index, value in enumerate(owner):
            yield from _find_tensors(value, shape, (*path, index))
    elif hasattr(owner, "set_timesteps"):
        yield from _find_tensors(vars(owner), shape, path)


def _replace(owner: Any, path: StatePath, tensor: torch.Tensor) -> None:
    """Assign into what _find_tensors went through; a tuple on the way is built anew."""
    if hasattr(owner, "set_timesteps"):
        owner = vars(owner)
    key, rest = path[0], path[1:]
    if not rest:
        owner[key] = tensor
        return
    inner = owner[key]
    if isinstance(inner, tuple):
        inner = owner[key] = list(inner)
        _replace(inner, rest, tensor)
        owner[key] = tuple(inner)
    else:
        _replace(inner, rest, tensor)


def _one_line(err: BaseException) -> str:
    """The first line of an exception, with its type."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
