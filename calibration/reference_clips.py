"""What the float model made of samples: frames, latents after each step, some denoiser passes."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array, Engine, Tensors
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.runtime.outputs import new_file
from mutoscope.runtime.sampler import F32

U8 = NDArray[np.uint8]
# A step and, as guidance makes two passes of it, the pass.
Place: TypeAlias = tuple[int, int]

_LOGGER = logging.getLogger(__name__)
_DIGEST_DIGITS = 16
_INPUT, _OUTPUT = "input", "output"


@dataclass(frozen=True)
class DenoiserPass:
    """One pass of the float denoiser.

    Attributes:
        step_index: The step that it is a part of.
        inputs: What it was fed, by the names of its inputs.
        output: What it returned.
    """

    step_index: int
    inputs: Tensors
    output: Array


@dataclass(frozen=True)
class ReferenceClip:
    """What the float model made of a sample.

    Attributes:
        frames: uint8 [F, H, W, 3].
        step_latents: The latents after each step, float32 [N, C, F, h, w]; the last are clean.
        passes: Some passes of the denoiser on the way.
    """

    frames: U8
    step_latents: F32
    passes: tuple[DenoiserPass, ...]


class ReferenceClips:
    """The clips of a float model in a folder, each in a file that its sample gives the name."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist yet."""
        self._folder = folder

    def find(self, identity: Mapping[str, Any]) -> ReferenceClip | None:
        """Return the clip of this identity; None if it is not there or is damaged."""
        path = self._name(identity)
        try:
            # numpy leaves a file open that it cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _read_clip(dict(arrays))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as err:
            _LOGGER.warning("%s is damaged and is made again: %s", path, err)
            return None

    def keep(self, identity: Mapping[str, Any], clip: ReferenceClip) -> None:
        """Write a clip; raises `OutputError`."""
        arrays: dict[str, Array] = {"frames": clip.frames, "step_latents": clip.step_latents}
        for index, denoiser_pass in enumerate(clip.passes):
            prefix = f"{index}/{denoiser_pass.step_index}"
            arrays[f"{prefix}/{_OUTPUT}"] = denoiser_pass.output
            for name, array in denoiser_pass.inputs.items():
                arrays[f"{prefix}/{_INPUT}/{name}"] = array
        with new_file(self._name(identity)) as temporary:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

    def _name(self, identity: Mapping[str, Any]) -> Path:
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]
        return self._folder / f"reference-{digest}.npz"


def _read_clip(arrays: dict[str, Array]) -> ReferenceClip:
    frames, step_latents = arrays.pop("frames"), arrays.pop("step_latents")
    outputs: dict[tuple[int, int], Array] = {}
    inputs: dict[tuple[int, int], Tensors] = {}
    for key, array in arrays.items():
        index, step_index, kind, *name = key.split("/", 3)
        place = int(index), int(step_index)
        if kind == _OUTPUT:
            outputs[place] = array
        else:
            inputs.setdefault(place, {})[name[0]] = array
    passes = (DenoiserPass(place[1], inputs[place], outputs[place]) for place in sorted(outputs))
    return ReferenceClip(frames, step_latents, tuple(passes))


class RecordingEngine(ForwardingEngine):
    """A denoiser that keeps what went in and came out in some passes of a clip."""

    def __init__(self, engine: Engine) -> None:
        """Stand for an engine, and record nothing yet."""
        super().__init__(engine)
        self.begin(())

    def begin(self, places: Collection[Place]) -> None:
        """Begin another clip, and forget the last one's passes."""
        self.passes: list[DenoiserPass] = []
        self._places = frozenset(places)
        self._place = 0, 0

    def end_step(self) -> None:
        """Say that the passes which follow are those of the next step."""
        self._place = self._place[0] + 1, 0

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Tensors:
        """As the engine does."""
        returned = super().run(feeds, outputs, wanted)
        step_index, pass_index = self._place
        if self._place in self._places:
            # All of these arrays are used again in the next pass.
            inputs = {name: array.copy() for name, array in feeds.items()}
            output = next(iter(returned.values())).copy()
            self.passes.append(DenoiserPass(step_index, inputs, output))
        self._place = step_index, pass_index + 1
        return returned
