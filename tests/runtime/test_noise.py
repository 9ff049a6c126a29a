"""NoiseGenerator against torch's CPU generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mutoscope.runtime import noise
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.noise import BLOCK, CHUNK, NoiseGenerator, make_noise_source

# torch computes log, sin and cos in float32, with vector code that is off by some units in the last
# place; here they are computed in float64 and rounded. The absolute part is for values near zero:
# there the rounding of the angle is many units of its sine or cosine.
RELATIVE_TOLERANCE = 5e-7
ABSOLUTE_TOLERANCE = 5e-7
# The first 16 values of 21, as the bits of float32; the last 16 of the 21 are drawn anew.
FIRST_BITS = {
    0: (
        "bf901b85 bf93808a be804bd6 bede255e 3f594515 bfc70d5b beaec6cb 3fed2f4e "
        "3eefaa55 be217f5f 3fb8c9db 3e8837a1 3e2a7344 3fcb0d01 3f72409c bf57fb34"
    ),
    2**40 + 5: (
        "3febd177 3f04d5ca bfdb203c bfd9c6cc 40013e2b bf1a0d51 3e147a81 be196c4b "
        "4027553b bede3842 3eb46552 bd843391 3f44c4e5 3efcf28f 3e7f3335 3fdf9eba"
    ),
}
PERMUTATION = [4, 0, 7, 3, 2, 5, 1, 6]  # torch.randperm(8) of seed 0
LAST_BITS = {
    0: "3f6e8c31 3fa12737 4000519a 3d5c1b3a 3f1e38f6",
    2**40 + 5: "3f3ea9b4 3d01aaa9 bf9611ac bfc0e36c be17a8bd",
}


def assert_same_stream(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    found_stream = NoiseGenerator(seed)
    for size in sizes:
        expected = torch.randn(size, generator=generator).numpy()
        found = found_stream.normal((size,))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


@pytest.mark.parametrize(
    "seed", [0, 1, 42, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64 - 1, -1, -5, -(2**63)]
)
def test_every_seed_that_torch_takes_gives_its_stream(seed: int) -> None:
    assert_same_stream(seed, [4096, 17, 3, 1024])


@pytest.mark.parametrize("seed", FIRST_BITS)
def test_noise_has_the_same_bits_on_every_machine(seed: int) -> None:
    noise_of_21 = NoiseGenerator(seed).normal((21,))
    found = [f"{bits:08x}" for bits in noise_of_21.view(np.uint32)]
    assert found == f"{FIRST_BITS[seed]} {LAST_BITS[seed]}".split()
    # Those that are not drawn again are the same among more.
    among_more = NoiseGenerator(seed).normal((64,)).view(np.uint32)[:5]
    assert [f"{bits:08x}" for bits in among_more] == found[:5]


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 1000, 65536, 100_003])
def test_every_size_gives_the_values_of_torch(size: int) -> None:
    assert_same_stream(7, [size, size])


def test_the_second_normal_of_a_pair_waits_through_large_draws() -> None:
    assert_same_stream(3, [1, 100, 1, 16, 5, 64, 64, 2, 1, 1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=8),
)
def test_interleaved_draws_of_any_size_follow_torch(seed: int, sizes: list[int]) -> None:
    assert_same_stream(seed, sizes)


def test_values_fill_the_shape_in_the_order_of_torch() -> None:
    shape = (1, 4, 3, 5, 7)
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(11)).numpy()
    found = NoiseGenerator(11).normal(shape)
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK + BLOCK, 3 * CHUNK + 7])
def test_values_do_not_depend_on_the_chunks_in_which_they_are_made(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks = NoiseGenerator(7).normal((size,))
    monkeypatch.setattr(noise, "CHUNK", 4 * CHUNK)
    np.testing.assert_array_equal(in_chunks, NoiseGenerator(7).normal((size,)))


@pytest.mark.parametrize("shape", [(3,), (0,), (), (16,), (1, 4, 3, 5, 7)])
def test_fill_writes_what_normal_returns(shape: tuple[int, ...]) -> None:
    filling, returning = NoiseGenerator(3), NoiseGenerator(3)
    array = np.empty(shape, dtype=np.float32)
    for _ in range(3):
        filling.fill(array)
        np.testing.assert_array_equal(array, returning.normal(shape))


@pytest.mark.parametrize(
    "array", [np.empty(20), np.empty((20, 2), dtype=np.float32)[:, 0], np.empty(4, dtype=np.int32)]
)
def test_fill_refuses_arrays_that_it_cannot_fill_in_place(array: NDArray[Any]) -> None:
    with pytest.raises(ParameterError, match="it must be float32 and C-contiguous"):
        NoiseGenerator(0).fill(array)


def test_a_noise_source_draws_into_one_array_in_the_order_that_is_asked_for() -> None:
    shape = (1, 2, 3, 4, 5)
    channels_first = make_noise_source(NoiseGenerator(3), shape, frames_first=False)
    frames_first = make_noise_source(NoiseGenerator(3), shape, frames_first=True)
    expected = NoiseGenerator(3)
    first, same = channels_first(), frames_first()
    for _ in range(2):
        values = expected.normal((120,))
        np.testing.assert_array_equal(first, values.reshape(shape))
        np.testing.assert_array_equal(same, values.reshape(1, 3, 2, 4, 5).swapaxes(1, 2))
        assert same.flags.c_contiguous
        assert channels_first() is first
        assert frames_first() is same


def test_two_generators_of_a_seed_do_not_disturb_each_other() -> None:
    first, second = NoiseGenerator(5), NoiseGenerator(5)
    interleaved = [(first.normal((20,)), second.normal((20,))) for _ in range(3)]
    for left, right in interleaved:
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(
        ParameterError, match=rf"seed is {seed}; it must lie within 0 and 2\^64 - 1"
    ):
        NoiseGenerator(seed)


@pytest.mark.parametrize("seed", [1.5, "7", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: object) -> None:
    with pytest.raises(ParameterError, match="must be a whole number"):
        NoiseGenerator(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 5])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 100, 1500])
def test_a_permutation_is_that_of_torch_and_moves_the_stream_as_it_does(
    seed: int, count: int
) -> None:
    generator, found = torch.Generator("cpu").manual_seed(seed), NoiseGenerator(seed)
    # An odd number of small draws leaves a normal behind, which a permutation does not use up.
    for size in (3, 40):
        torch.randn(size, generator=generator)
        found.normal((size,))
        expected = torch.randperm(count, generator=generator).numpy()
        np.testing.assert_array_equal(found.permutation(count), expected)
    after = torch.randn(5, generator=generator).numpy()
    np.testing.assert_allclose(found.normal((5,)), after, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def test_a_permutation_of_a_seed_is_as_it_was() -> None:
    assert NoiseGenerator(0).permutation(8).tolist() == PERMUTATION
