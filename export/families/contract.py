"""What a family file gives to the export: modules with the graph contract, and data.

A family is one file with one function, `open_family(checkpoint) -> FamilyExport`. Everything that
is particular to a model family stays inside its modules or in the values below; neither the rest of
the export nor the runtime knows any family.

The graph contract (docs/bundle.md has the sources):

    encoders      whatever their inputs' sources name             -> any outputs, by name
    unet          sample float32 [B, C, F, h, w]
                  timestep float32 [1]
                  encoder_hidden_states and further conditions    -> out_sample, as sample
    vae_decoder   latents float32 [B, C, F, h, w]                 -> frames uint8 [B, F, H, W, 3]

The module of a UNet has the model as its attribute `unet`: `export/reuse_export.py` lets it return
a second output, deep_feature, and cuts the component unet_reuse out of its graphs.

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

from mutoscope.runtime.image_records import ImageRecord
from mutoscope.runtime.manifest import (
    ConditionRecord,
    DefaultsRecord,
    LatentsRecord,
    LimitsRecord,
    TensorRecord,
)

Sizes = Mapping[str, int]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ComponentExport:
    """One module to export.

    Attributes:
        module: In eval mode; `forward` takes the inputs by name and returns a tensor, or a tuple of
            tensors if there are several outputs.
        inputs: For each input, its type, shape and source. A string in a shape names an axis that
            stays dynamic; the same name is the same size.
        outputs: The same of the outputs, in the order in which the module returns them.
        multiples: For each dynamic axis that cannot take every size, what it is a multiple of.
        trace_sizes: A size for each dynamic axis to trace with. None may be 1, and no two equal:
            the tracer takes both as facts about the model.
        parity_sizes: Other sizes, at which the graph is compared with the module.
        vocabulary_size: Input ids are drawn below this.
        ranges: The inputs that are drawn evenly from a range, to trace and to compare; all other
            floats are normal, and a timestep is a whole number below 1000.
        float32_only: Stays in float32 in a bundle of float16 graphs, as the checkpoint asks for.
    """

    name: str
    module: torch.nn.Module
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    trace_sizes: Sizes
    parity_sizes: tuple[Sizes, ...]
    multiples: dict[str, int] = field(default_factory=dict)
    vocabulary_size: int = 1
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    float32_only: bool = False

    def make_inputs(self, sizes: Sizes, seed: int) -> Arrays:
        """Return random inputs of the given sizes: normal floats, valid ids, a whole timestep."""
        random = np.random.default_rng(seed)
        arrays: Arrays = {}
        for name, tensor in self.inputs.items():
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            if name in self.ranges:
                arrays[name] = random.uniform(*self.ranges[name], shape).astype(np.float32)
            elif tensor.source == "timestep":
                arrays[name] = random.integers(0, 1000, shape).astype(np.float32)
            elif tensor.dtype == "int64":
                arrays[name] = random.integers(0, self.vocabulary_size, shape, dtype=np.int64)
            else:
                arrays[name] = random.standard_normal(shape, dtype=np.float32)
        return arrays


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer of a checkpoint.

    Attributes:
        folder: Where transformers finds it.
        class_name: The transformers class that the checkpoint names.
        max_length: How many ids the text encoder takes.
    """

    folder: Path
    class_name: str
    max_length: int


@dataclass(frozen=True)
class FamilyExport:
    """A checkpoint as its family reads it.

    Attributes:
        family: The family's name, for people.
        component_makers: For each component, a function that loads it, in the order in which the
            runtime runs them. Called one at a time, so that only one component is in memory.
        scheduler: The checkpoint's own diffusers scheduler.
        tokenizers: By the source that their ids are: "input_ids", "input_ids_2".
        defaults: `defaults.scheduler` is the class name of `scheduler`.
        classes: For each component, the class of the module it came from.
        takes_presets: Whether the presets of few-step models were made for this family.
        weight_shapes: For each component that a LoRA may change, a function that returns the shape
            of every weight without reading them.
        guidance: As in the manifest, like `images`, `conditions`, `force_zeros_for_empty_prompt`.
    """

    family: str
    component_makers: dict[str, Callable[[], ComponentExport]]
    scheduler: Any
    tokenizers: dict[str, TokenizerSource]
    latents: LatentsRecord
    limits: LimitsRecord
    defaults: DefaultsRecord
    classes: dict[str, str]
    guidance: bool = True
    images: dict[str, ImageRecord] = field(default_factory=dict)
    conditions: dict[str, ConditionRecord] = field(default_factory=dict)
    force_zeros_for_empty_prompt: bool = False
    takes_presets: bool = False
    weight_shapes: Mapping[str, Callable[[], Mapping[str, tuple[int, ...]]]] = field(
        default_factory=dict
    )
