import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mutoscope.runtime.errors import BundleError
from mutoscope.runtime.safetensors_file import MAXIMUM_HEADER_BYTES, MAXIMUM_RANK, SafetensorsFile

TENSORS: dict[str, np.ndarray] = {
    "prompt_embeds": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
    "pooled_prompt_embeds": np.arange(15, dtype=np.float32).reshape(3, 5) / 7,
}
METADATA = {"texts": "[]", "format": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors", METADATA)
    return tmp_path / "a.safetensors"


def write(path: Path, header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = len(text) if length is None else length
    path.write_bytes(count.to_bytes(8, "little") + text + data)
    return path


def make_record(**changes: Any) -> dict[str, Any]:
    """The header of one tensor of two values."""
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_rows_are_those_that_the_library_wrote(path: Path) -> None:
    file = SafetensorsFile(path, "a")
    assert file.metadata == METADATA
    assert file.shapes == {name: array.shape for name, array in TENSORS.items()}
    for name, array in TENSORS.items():
        for index in range(3):
            row = file.read_row(name, index)
            assert row.dtype == np.float32
            np.testing.assert_array_equal(row, array[index : index + 1])


def test_a_header_of_one_tensor_is_read(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "a", make_record()), "a")
    assert file.metadata == {}
    np.testing.assert_array_equal(file.read_row("a", 1), [0])


def test_a_tensor_of_as_many_axes_as_are_allowed_is_read(tmp_path: Path) -> None:
    shape = [2, *[1] * (MAXIMUM_RANK - 1)]
    file = SafetensorsFile(write(tmp_path / "a", make_record(shape=shape)), "a")
    assert file.read_row("a", 1).shape == (1,) * MAXIMUM_RANK


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "a header that is not JSON"),
        (b"\xff\xff", "a header that is not JSON"),
        (b"[" * 100_000, "a header that is not JSON"),
        (b'{"a": 1, "a": 2}', "a header that is not JSON"),
        ([], "a header that is not an object"),
        ({"__metadata__": {"a": 1}}, "has __metadata__ that are not texts"),
        ({"__metadata__": []}, "has __metadata__ that are not texts"),
        ({"a": []}, "a tensor 'a' that is not F32"),
        (make_record(dtype="F16"), "a tensor 'a' that is not F32"),
        (make_record(shape=[-2, -1]), "a tensor 'a' without a shape or a place"),
        (make_record(shape=[2.0]), "a tensor 'a' without a shape or a place"),
        (make_record(shape=[True, 2]), "a tensor 'a' without a shape or a place"),
        (make_record(shape=None), "a tensor 'a' without a shape or a place"),
        (make_record(data_offsets=[0]), "a tensor 'a' without a shape or a place"),
        (make_record(data_offsets=[-8, 0]), "a tensor 'a' without a shape or a place"),
        (make_record(data_offsets=[0, 2**70]), "a tensor 'a' without a shape or a place"),
        (make_record(data_offsets=[8, 0]), "whose shape is not that of its values"),
        (make_record(shape=[3]), "whose shape is not that of its values"),
        (make_record(shape=[2**62, 2**62, 2**62]), "whose shape is not that of its values"),
        (make_record(shape=[2, *[1] * 8]), "a tensor 'a' of 9 axes, more than 8"),
        (make_record(shape=[2**62] * 100_000), "a tensor 'a' of 100000 axes, more than 8"),
        ({"a\nb": 1}, r"a tensor 'a\\nb' that is not F32"),
        (make_record(data_offsets=[4, 12]), "tensors that overlap or leave gaps"),
        ({**make_record(), "b": make_record()["a"]}, "tensors that overlap or leave gaps"),
        (make_record(shape=[1], data_offsets=[0, 4]), r"has \d+ bytes; its tensors end after"),
        (make_record(shape=[4], data_offsets=[0, 16]), r"has \d+ bytes; its tensors end after"),
        ({}, r"has \d+ bytes; its tensors end after"),
    ],
)
def test_a_damaged_header_is_one_line(tmp_path: Path, header: Any, message: str) -> None:
    path = write(tmp_path / "a", header)
    with pytest.raises(BundleError, match=message) as caught:
        SafetensorsFile(path, "prompts/a")
    text = str(caught.value)
    assert text.startswith("prompts/a has ")
    assert text.endswith(" (damaged?): copy or export it again")
    assert "\n" not in text


@pytest.mark.parametrize("length", [50, 2**40, 2**64 - 1])
def test_a_header_that_ends_after_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a", {}, b"", length)
    with pytest.raises(BundleError, match=f"a header of {length} bytes, which it cannot hold"):
        SafetensorsFile(path, "a")


def test_a_header_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((MAXIMUM_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAXIMUM_HEADER_BYTES + 100)  # sparse
    with pytest.raises(BundleError, match="a header of 67108865 bytes, more than 67108864"):
        SafetensorsFile(path, "a")


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 7])
def test_a_file_shorter_than_its_first_number_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BundleError, match=r"\(damaged\?\)"):
        SafetensorsFile(tmp_path / "a", "a")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_damage(tmp_path: Path, value: float) -> None:
    array = np.array([[1.0], [value]], np.float32)
    save_file({"a": array}, tmp_path / "a")
    file = SafetensorsFile(tmp_path / "a", "a")
    np.testing.assert_array_equal(file.read_row("a", 0), [[1.0]])
    with pytest.raises(BundleError, match="a has a damaged tensor 'a'"):
        file.read_row("a", 1)


def test_a_file_that_is_cut_or_gone_after_it_was_opened_is_damage(path: Path) -> None:
    file = SafetensorsFile(path, "a")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="a has a damaged tensor"):
        file.read_row("prompt_embeds", 2)
    path.unlink()
    with pytest.raises(BundleError, match="a cannot be read: No such file"):
        file.read_row("prompt_embeds", 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 500))
def test_any_damage_is_found_or_harmless(path: Path, position: int, value: int, cut: int) -> None:
    data = bytearray(path.read_bytes())
    data[min(position, len(data) - 1)] = value
    damaged = path.with_name("damaged")
    damaged.write_bytes(bytes(data[: len(data) - cut]) if cut < len(data) else b"")
    try:
        file = SafetensorsFile(damaged, "a")
        for name, shape in file.shapes.items():
            assert file.read_row(name, shape[0] - 1).shape == (1, *shape[1:])
    except BundleError:
        pass
