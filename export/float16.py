"""Make a component compute in float16, and in float32 where float16 is too narrow.

The module itself is converted, so that the exported graph states the type of every value and needs
no conversion afterwards: what onnxruntime and TensorRT call strongly typed. In float32 stay the
norms with their weights and, through `export/translations.py`, the softmax of attention; diffusers
computes sinusoids (of a timestep, a size, a frame rate) in float32 by itself, and a family's module
takes its inputs and returns its output in float32 (`export/families/contract.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps

from mutoscope.export.errors import ExportError
from mutoscope.export.families.contract import ComponentExport

FLOAT16_MAXIMUM = 65504.0
# They sum squares over thousands of values, and their variance may be below what float16 holds.
FLOAT32_MODULES = (torch.nn.GroupNorm, torch.nn.LayerNorm)


def convert_to_float16(module: torch.nn.Module) -> None:
    """Make a module compute in float16, in place; its norms compute and keep float32."""
    for part in module.modules():
        if isinstance(part, FLOAT32_MODULES):
            part.register_forward_pre_hook(_cast_inputs_to_float32)
            part.register_forward_hook(_cast_output_to_float16)
            continue
        if isinstance(part, Timesteps):
            # Some UNets join its output with values in float16.
            part.register_forward_hook(_cast_output_to_float16)
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.half()
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                # A new one: a view, as positions are, cannot be of another type than its base.
                setattr(part, name, buffer.half())


def check_float16_weights_range(component: ComponentExport) -> None:
    """Raise `ExportError` if a weight is too large for float16."""
    for name, tensor in component.module.state_dict().items():
        if tensor.is_floating_point():
            _check_range(component.name, f"the weight {name}", tensor)


@contextmanager
def refuse_float16_overflow(component: ComponentExport) -> Iterator[None]:
    """While the module runs in float32, refuse values that float16 does not hold.

    onnxruntime on a CPU cannot find them: it computes a float16 graph in float32 and keeps what
    lies between two operators in float32 as well. A GPU would return black frames.

    Raises:
        ExportError: Inside the context, at the first part of the module whose output is too large.
    """

    def watch(name: str) -> Any:
        def check(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            for value in output if isinstance(output, tuple | list) else (output,):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    _check_range(component.name, name, value)

        return check

    hooks = [part.register_forward_hook(watch(name)) for name, part in _parts(component)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(component: ComponentExport) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the parts inside the module by name; its own output is in float32 in any case."""
    return ((name, part) for name, part in component.module.named_modules() if name)


def _check_range(component_name: str, where: str, tensor: torch.Tensor) -> None:
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if not largest <= FLOAT16_MAXIMUM:  # so that NaN is refused too
        raise ExportError(
            f"{component_name} cannot compute in float16: {where} reaches {largest:.3g} and "
            f"float16 ends at {FLOAT16_MAXIMUM:.0f}: use --dtype float32"
        )


def _cast_inputs_to_float32(
    _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _cast_output_to_float16(
    _module: torch.nn.Module, _inputs: Any, output: torch.Tensor
) -> torch.Tensor:
    return output.half()
