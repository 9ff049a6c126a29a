"""What a manifest says of the memory that a decoder needs, and of how a frame is cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormRecord:
    """A group norm at the start of a stage, whose statistics the runtime finds.

    The stage's graph takes them as `mean` and `reciprocal_std`, float32 [1, groups, 1].

    Attributes:
        value: The stage's input that is normalised.
        groups: How many groups its channels form.
        epsilon: What is added to the variance.
    """

    value: str
    groups: int
    epsilon: float


@dataclass(frozen=True)
class StageRecord:
    """A part of a decoder that works on rows of a frame, given some more rows around them.

    Scales are rows of a value for each row of the latents.

    Attributes:
        graph: Its path in the bundle. Inputs and outputs are [1, C, H, W], all but the latents and
            the frames, which are as for the whole decoder.
        inputs: The scale of each input but the norm's statistics.
        outputs: The scale of each output.
        scale: The scale that `halo` counts at, the smallest of the inputs.
        halo: How many more rows of the inputs the stage must see on each side.
        norm: What it starts with, if it does.
    """

    graph: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    scale: int
    halo: int
    norm: NormRecord | None = None


@dataclass(frozen=True)
class TilesRecord:
    """How one frame is decoded in tiles of its rows, with the result of the whole.

    Attributes:
        head: The path in the bundle of the graph that sees the whole frame, where it is small.
        stages: What follows, in order.
        head_bytes_per_latent: What the head needs for each position of the latents, beside its
            attention, which `DecoderRecord.bytes_per_latent_pair` says.
        bytes_per_pixel: What a stage needs at most for each pixel of its rows of the result.
        weights_bytes: The weights of the largest graph among them.
    """

    head: str
    stages: tuple[StageRecord, ...]
    head_bytes_per_latent: float
    bytes_per_pixel: float
    weights_bytes: int


@dataclass(frozen=True)
class DecoderRecord:
    """What decoding costs, and how it may be cut into parts.

    A run on F frames of latents of h x w, that is, of H x W pixels, needs about
    F * max(bytes_per_pixel * H * W, bytes_per_latent_pair * (h * w)^2) bytes beside the weights.

    Attributes:
        independent_frames: Whether a frame does not depend on its neighbours, so that frames may be
            decoded apart with the same result.
        bytes_per_pixel: What convolutions need for each pixel of the result.
        bytes_per_latent_pair: What attention needs for each pair of positions in the latents of one
            frame; 0 without attention.
        weights_bytes: The weights, in the type that the graph computes in.
        tiles: How a frame is cut; None where it cannot be.
    """

    independent_frames: bool
    bytes_per_pixel: float
    bytes_per_latent_pair: float
    weights_bytes: int
    tiles: TilesRecord | None = None
