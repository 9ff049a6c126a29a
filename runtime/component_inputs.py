"""The inputs that each component of a bundle gets in a generation, from a seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from mutoscope.engines.engine import Array, Tensors
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.baked_prompts import choose_text
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.conditioning import ConditionEncoder, make_values
from mutoscope.runtime.manifest import LATENTS, TIMESTEP, Manifest, is_denoiser
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.timings import Timings

_TIMESTEP = 500.0


class _RecordingComponents(Components):
    """The components of a bundle, which keep what they were fed with."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        super().__init__(bundle, options)
        self.feeds: dict[str, Tensors] = {}

    def run_feeds(
        self,
        name: str,
        timings: Timings,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Array]:
        self.feeds[name] = dict(feeds)
        return super().run_feeds(name, timings, feeds, outputs, wanted)


def make_inputs(
    bundle: Bundle, settings: Settings, num_threads: int | None = None
) -> dict[str, Tensors]:
    """Return the inputs by name for each component.

    The encoders are run to know those behind them, and so are denoisers from which others take
    something.

    Args:
        bundle: The bundle.
        settings: Sizes, conditions and seed.
        num_threads: Threads for what is run; None takes one for each core.

    Raises:
        BundleError: A file of the bundle is damaged.
        EngineError: A graph cannot be loaded or run.
    """
    manifest, timings = bundle.manifest, Timings()
    generator = NoiseGenerator(settings.seed)
    components = _RecordingComponents(bundle, EngineOptions(num_threads=num_threads, memory="low"))
    encoder = ConditionEncoder(bundle, components)
    prompt = encoder.make_prompt("prompt", choose_text(bundle), None)
    values = make_values(bundle.manifest, settings, _draw_image(bundle, settings))
    known = encoder.encode([prompt], values, generator, timings)[0]
    known[LATENTS] = generator.normal(settings.latents_shape)
    known[TIMESTEP] = np.asarray(_TIMESTEP)
    for name in manifest.components:
        carried = _list_carried(manifest, name)
        if carried:
            outputs = components.run_all(name, timings, known)
            known |= {output: outputs[output] for output in carried}
            components.release(name)
    return {
        name: components.feeds.get(name) or components.make_feeds(name, known)
        for name in manifest.components
    }


def _list_carried(manifest: Manifest, name: str) -> list[str]:
    """What a denoiser returns beside the model output and another one takes."""
    if not is_denoiser(name):
        return []
    taken = {tensor.source for c in manifest.components.values() for tensor in c.inputs.values()}
    return [output for output in list(manifest.components[name].outputs)[1:] if output in taken]


def _draw_image(bundle: Bundle, settings: Settings) -> NDArray[np.uint8] | None:
    """Random pixels, uint8 [H, W, 3], for a bundle that takes an image."""
    if not bundle.manifest.images:
        return None
    random = np.random.default_rng(settings.seed)
    return random.integers(0, 256, (settings.height, settings.width, 3), dtype=np.uint8)
