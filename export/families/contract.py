"""What a family file gives to the export: modules with the graph contract, and data.

A family is one file with one function, `open_family(checkpoint) -> FamilyExport`. Everything that
is particular to a model family stays inside its modules or in the values below; neither the rest of
the export nor the runtime knows any family.

The graph contract:

    text_encoder  input_ids int64 [B, S]                          -> prompt_embeds float32 [B, S, D]
    unet          sample float32 [B, C, F, h, w]
                  timestep float32 [1]
                  encoder_hidden_states float32 [B, S, D]         -> out_sample, shaped as sample
    vae_decoder   latents float32 [B, C, F, h, w]                 -> frames uint8 [B, F, H, W, 3]

It is the same for a float16 graph: `forward` casts to the type of the model's weights, and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mutoscope.runtime.manifest import DefaultsRecord, LatentsRecord, LimitsRecord, TensorRecord

Sizes = Mapping[str, int]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ComponentExport:
    """One module to export.

    Attributes:
        module: In eval mode; `forward` takes the inputs by name and returns one tensor.
        inputs: For each input, its type, shape and source. A string in a shape names an axis that
            stays dynamic; the same name is the same size.
        outputs: The same of the one output.
        multiples: For each dynamic axis that cannot take every size, what it is a multiple of.
        trace_sizes: A size for each dynamic axis to trace with. None may be 1, and no two equal:
            the tracer takes both as facts about the model.
        parity_sizes: Other sizes, at which the graph is compared with the module.
        vocabulary_size: Input ids are drawn below this.
    """

    name: str
    module: torch.nn.Module
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    trace_sizes: Sizes
    parity_sizes: tuple[Sizes, ...]
    multiples: dict[str, int] = field(default_factory=dict)
    vocabulary_size: int = 1

    def make_inputs(self, sizes: Sizes, seed: int) -> Arrays:
        """Return random inputs of the given sizes: normal floats, valid ids, a whole timestep."""
        random = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name, tensor in self.inputs.items():
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            if tensor.source == "timestep":
                arrays[name] = random.integers(0, 1000, shape).astype(np.float32)
            elif tensor.dtype == "int64":
                arrays[name] = random.integers(0, self.vocabulary_size, shape, dtype=np.int64)
            else:
                arrays[name] = random.standard_normal(shape, dtype=np.float32)
        return arrays


@dataclass(frozen=True)
class FamilyExport:
    """A checkpoint as its family reads it.

    Attributes:
        family: The family's name, for people.
        component_makers: For each component, a function that loads it. Called one at a time, so
            that only one component is in memory.
        scheduler: The checkpoint's own diffusers scheduler.
        tokenizer_folder: Where transformers finds the tokenizer.
        tokenizer_class: The transformers class that the checkpoint names.
        max_length: How many ids the text encoder takes.
        defaults: `defaults.scheduler` is the class name of `scheduler`.
        classes: For each component, the class of the module it came from.
    """

    family: str
    component_makers: dict[str, Callable[[], ComponentExport]]
    scheduler: Any
    tokenizer_folder: Path
    tokenizer_class: str
    max_length: int
    latents: LatentsRecord
    limits: LimitsRecord
    defaults: DefaultsRecord
    classes: dict[str, str]
    guidance: bool = True
