"""Decode latents with the decoder of a bundle."""

from __future__ import annotations

from collections.abc import Generator

from mutoscope.engines.engine import Array
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.decoding import (
    U8,
    DecodePlan,
    OnRun,
    Shape,
    decode_chunks,
    join_chunks,
    plan_decode,
)
from mutoscope.runtime.manifest import LATENTS, VAE_DECODER
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.timings import Timings


def make_decode_plan(
    bundle: Bundle,
    latents_shape: Shape,
    memory_limit_bytes: int | None = None,
    *,
    name: str = VAE_DECODER,
) -> DecodePlan:
    """Return how a bundle decodes latents of a shape; for use before the work.

    Args:
        bundle: The bundle.
        latents_shape: [1, C, F, h, w].
        memory_limit_bytes: What the process may use while it decodes; None for no limit.
        name: The decoder, a component of the bundle.

    Raises:
        ParameterError: The limit is too low; the message names one that works.
    """
    return plan_decode(
        bundle.find_component(name).decoder,
        latents_shape,
        bundle.manifest.latents.vae_scale_factor_spatial,
        memory_limit_bytes,
    )


def decode_latents(
    components: Components,
    latents: F32,
    plan: DecodePlan,
    timings: Timings,
    *,
    on_run: OnRun | None = None,
    name: str = VAE_DECODER,
) -> U8:
    """Return all frames of clean latents, uint8 [F, H, W, 3]; see `decode_in_chunks`."""
    chunks = decode_in_chunks(components, latents, plan, timings, on_run=on_run, name=name)
    return join_chunks(chunks, plan, latents.shape)


def decode_in_chunks(
    components: Components,
    latents: F32,
    plan: DecodePlan,
    timings: Timings,
    *,
    on_run: OnRun | None = None,
    name: str = VAE_DECODER,
) -> Generator[U8, None, None]:
    """Yield the frames of clean latents as they are decoded, each chunk uint8 [f, H, W, 3].

    With low memory, the decoder is freed when the last one is there, or the generator is closed.

    Args:
        components: Those of the bundle that the plan was made for.
        latents: float32 [1, C, F, h, w].
        plan: How to cut them, from make_decode_plan.
        timings: Where the time is added.
        on_run: Called after each run of a graph; returns False to cancel.
        name: The decoder.

    Raises:
        CancelledError: on_run asked to stop.
        EngineError: A graph cannot be loaded or run.
        OutputError: Tiles do not fit into the folder for temporary files.
    """

    def run(part: F32) -> Array:
        return components.run(name, timings, {LATENTS: part})

    try:
        if plan.tiles is None:
            yield from decode_chunks(run, latents, plan, on_run)
            return
        # The whole decoder may be in memory from an earlier call.
        components.unload(name)
        open_graph = components.make_opener(name)
        chunks = decode_chunks(run, latents, plan, on_run, open_graph=open_graph)
        while True:
            with timings.measure(f"seconds_{name}"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk
    finally:
        components.release(name)
