"""Normal random numbers as torch's CPU generator draws them, without torch.

The start noise and the noise of the steps fix the video that a seed gives, so they are drawn here
exactly as `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` draws them:

- MT19937, seeded the classic way with the low 32 bits of the seed.
- From 16 values on: one 24-bit uniform for each value, `(word & 0xffffff) * 2^-24`, then Box-Muller
  over blocks of 16 in float32. The first eight of a block give the radii (as 1 - u), the last
  eight the angles. If the count is no multiple of 16, the last 16 values are drawn again.
  Logarithm, cosine and sine are computed in float64 and rounded, so that they have the same bits
  on every machine and in libmutoscope: an int8 model turns a last bit into another video.
- Under 16 values: Box-Muller in float64 on 53-bit uniforms, one pair at a time; the second normal
  of a pair waits for the next small draw, however many large draws come between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import ParameterError

F32: TypeAlias = NDArray[np.float32]
U32: TypeAlias = NDArray[np.uint32]

BLOCK = 16
HALF_BLOCK = BLOCK // 2
# Values made at a time, a whole number of blocks: then no memory of the size of a draw is needed on
# the way. Half as many at a time take a tenth longer.
CHUNK = 32768
STATE_WORDS = 624
# What torch's manual_seed takes. Only the low 32 bits reach the generator.
SEED_MIN = -(2**63)
SEED_MAX = 2**64 - 1


class NoiseGenerator:
    """The state of one torch CPU generator.

    Successive draws continue one stream; the sizes of earlier draws change what later ones give, as
    in torch.

    Source: at::CPUGeneratorImpl and normal_fill of torch; tests/runtime/test_noise.py compares.
    """

    def __init__(self, seed: int) -> None:
        """Start the stream of a seed.

        Args:
            seed: A whole number from -2^63 to 2^64 - 1, as torch's manual_seed takes it.

        Raises:
            ParameterError: The seed is no whole number or lies outside that range.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise ParameterError(f"seed is {seed!r}; it must be a whole number, for example 0")
        if not SEED_MIN <= seed <= SEED_MAX:
            raise ParameterError(f"seed is {seed}; it must lie within 0 and 2^64 - 1")
        self._words = np.random.Generator(_make_mersenne_twister(int(seed) & 0xFFFFFFFF))
        self._waiting_normal: float | None = None

    def normal(self, shape: Sequence[int]) -> F32:
        """Return the next standard normal values of the stream.

        Args:
            shape: The shape of the result; torch fills it in C order.

        Returns:
            A new float32 array.
        """
        values = np.empty(tuple(shape), dtype=np.float32)
        self.fill(values)
        return values

    def fill(self, array: F32) -> None:
        """Write the next standard normal values of the stream to an array, in place.

        Args:
            array: float32 and C-contiguous, of any shape; it becomes what `normal` would return.

        Raises:
            ParameterError: The array is of another type or layout.
        """
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ParameterError(
                f"array is {array.dtype} with strides {array.strides}; it must be float32 and "
                "C-contiguous: use np.empty(shape, dtype=np.float32)"
            )
        values = array.reshape(-1)
        if values.size < BLOCK:
            values[:] = [self._next_normal() for _ in range(values.size)]
            return
        whole = values.size - values.size % BLOCK
        for start in range(0, whole, CHUNK):
            self._fill_blocks(values[start : min(start + CHUNK, whole)])
        if whole != values.size:
            # torch draws uniforms for these too before it draws the last block again.
            self._next_words(values.size - whole)
            self._fill_blocks(values[-BLOCK:])

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return the numbers from 0 to count - 1 in the next random order of the stream.

        Equals torch.randperm(count, generator=...).

        Args:
            count: At least 1.

        Returns:
            A new int64 array [count].
        """
        order = np.arange(count)
        for index, word in enumerate(self._next_words(count - 1).tolist()):
            other = index + word % (count - index)
            order[index], order[other] = order[other], order[index]
        return order

    def _next_words(self, count: int) -> U32:
        """The next 32-bit outputs of the Mersenne Twister."""
        return self._words.integers(0, 0xFFFFFFFF, size=count, dtype=np.uint32, endpoint=True)

    def _fill_blocks(self, values: F32) -> None:
        """Whole blocks, in float32 from uniforms with 24 random bits each."""
        bits = self._next_words(values.size)
        bits &= np.uint32(0xFFFFFF)
        values[:] = bits
        del bits  # its memory is needed for what comes
        values *= np.float32(2**-24)
        _box_muller_in_place(values)

    def _next_normal(self) -> float:
        """One value of the float64 path, which makes two at a time."""
        if self._waiting_normal is not None:
            normal, self._waiting_normal = self._waiting_normal, None
            return normal
        angle = 2.0 * math.pi * self._next_double()
        radius = math.sqrt(-2.0 * math.log1p(-self._next_double()))
        self._waiting_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _next_double(self) -> float:
        """A uniform in [0, 1) with 53 random bits."""
        high, low = (int(word) for word in self._next_words(2))
        return (((high << 32) | low) & (2**53 - 1)) * 2.0**-53


def _make_mersenne_twister(seed: int) -> np.random.MT19937:
    """MT19937 in the state that its authors' init_genrand gives."""
    key = np.empty(STATE_WORDS, dtype=np.uint32)
    word = seed
    for index in range(STATE_WORDS):
        if index:
            word = (1812433253 * (word ^ (word >> 30)) + index) & 0xFFFFFFFF
        key[index] = word
    twister = np.random.MT19937(0)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": STATE_WORDS}}
    return twister


def _box_muller_in_place(uniforms: F32) -> None:
    """Turn whole blocks of 16 uniforms into normals, in place."""
    halves = uniforms.reshape(-1, 2, HALF_BLOCK)
    first, second = halves[:, 0], halves[:, 1]
    radius = np.log(np.float32(1.0) - first, dtype=np.float64).astype(np.float32)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle = np.float32(2.0 * math.pi) * second
    # To multiply here and then copy is faster than to multiply into pieces of eight.
    normals = np.cos(angle, dtype=np.float64).astype(np.float32)
    normals *= radius
    first[:] = normals
    normals = np.sin(angle, dtype=np.float64).astype(np.float32)
    normals *= radius
    second[:] = normals


def make_noise_source(
    generator: NoiseGenerator, shape: tuple[int, int, int, int, int], *, frames_first: bool
) -> Callable[[], F32]:
    """Return what draws noise for latents, each time into the same array.

    Args:
        generator: Where the noise comes from.
        shape: [B, C, F, H, W].
        frames_first: Draw it as [B, F, C, H, W], as some pipelines of diffusers do.

    Returns:
        A function without arguments. It returns standard normal noise, float32 [B, C, F, H, W],
        which the next call overwrites.
    """
    noise = np.empty(shape, dtype=np.float32)
    batch, channels, num_frames, height, width = shape
    drawn = (
        np.empty((batch, num_frames, channels, height, width), dtype=np.float32)
        if frames_first
        else noise
    )

    def draw() -> F32:
        generator.fill(drawn)
        if frames_first:
            np.copyto(noise, drawn.transpose(0, 2, 1, 3, 4))
        return noise

    return draw
