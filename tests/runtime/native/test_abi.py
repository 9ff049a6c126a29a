"""The rules of the ABI: sizes of structs, null pointers, out parameters, room for the frames."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutoscope.runtime.native import Library, NativePipeline, structs

OK, ERROR_ARGUMENT, ERROR_PARAMETER = 0, -1, -2
# What may follow the struct of a newer caller.
TAIL_BYTES = 24
STRUCTS = structs.INITIALISED

# ---- struct_size


def initialise(library: Library, name: str, size: int) -> tuple[int, bytes]:
    """What the init function of a struct makes of a buffer of this size, with 0xaa behind it."""
    struct, function = STRUCTS[name], getattr(library.functions, f"mutoscope_{name}_init")
    buffer = ctypes.create_string_buffer(b"\xaa" * (size + 64), size + 64)
    status = function(ctypes.cast(buffer, POINTER(struct)), size)
    return status, buffer.raw


@pytest.mark.parametrize("name", list(STRUCTS))
def test_init_fills_the_struct_of_any_caller_and_nothing_behind_it(
    library: Library, name: str
) -> None:
    size = ctypes.sizeof(STRUCTS[name])
    status, whole = initialise(library, name, size)
    assert status == OK
    for asked in (8, size - 8, size, size + TAIL_BYTES):
        status, raw = initialise(library, name, asked)
        known = min(asked, size)
        assert status == OK
        assert int.from_bytes(raw[:4], "little") == asked
        assert raw[4:known] == whole[4:known]
        assert raw[known:asked] == bytes(asked - known)
        assert raw[asked:] == b"\xaa" * 64


@pytest.mark.parametrize("name", list(STRUCTS))
def test_init_refuses_a_size_that_no_version_has(library: Library, name: str) -> None:
    size = ctypes.sizeof(STRUCTS[name])
    for asked in (0, 4, 7, size - 1, size + 3):
        status, raw = initialise(library, name, asked)
        assert status == ERROR_ARGUMENT
        assert set(raw) == {0xAA}
    function = getattr(library.functions, f"mutoscope_{name}_init")
    assert function(None, size) == ERROR_ARGUMENT
    # More than any struct will have; a size in bits or a pointer taken for one.
    assert function((STRUCTS[name])(), 2**40) == ERROR_ARGUMENT


# What struct_size says more than the struct has, what is behind it, and whether it is taken.
SIZES = {
    "same": (0, b"", True),
    "newer, zero tail": (TAIL_BYTES, bytes(TAIL_BYTES), True),
    "newer, with a field": (TAIL_BYTES, bytes(TAIL_BYTES - 1) + b"\1", False),
    "older": (-8, b"", True),
    "odd": (-1, b"", False),
    "odd and newer": (3, b"\0\0\0", False),
    "zero": (None, b"", False),
    "enormous": (2**31, b"", False),
}


class Sized:
    """A struct as another caller has it: cut or longer, with a guard behind it."""

    def __init__(self, struct: ctypes.Structure, kind: str) -> None:
        change, tail, self.is_taken = SIZES[kind]
        self.size = ctypes.sizeof(struct) + len(tail) + min(change or 0, 0)
        struct_size = 0 if change is None else ctypes.sizeof(struct) + change
        data = bytearray((bytes(struct) + tail)[: self.size] + b"\xaa" * 64)
        data[:4] = struct_size.to_bytes(4, "little")
        # The struct keeps what its pointers point to.
        self._struct = struct
        self._buffer = ctypes.create_string_buffer(bytes(data), len(data))
        self.pointer = ctypes.cast(self._buffer, POINTER(type(struct)))

    @property
    def data(self) -> bytes:
        return self._buffer.raw[: self.size]

    @property
    def guard(self) -> bytes:
        return self._buffer.raw[self.size :]


@pytest.mark.parametrize("kind", list(SIZES))
def test_params_of_other_callers_follow_the_rules(
    library: Library, native: NativePipeline, text_bundle: Path, kind: str
) -> None:
    functions = library.functions
    opened = Sized(native._make("pipeline_params", structs.PipelineParams()), kind)
    handle = c_void_p()
    status = functions.mutoscope_pipeline_open(byref(handle), bytes(text_bundle), opened.pointer)
    assert status == (OK if opened.is_taken else ERROR_ARGUMENT)
    assert bool(handle) is opened.is_taken
    functions.mutoscope_pipeline_close(handle)

    params = native._make("generate_params", structs.GenerateParams())
    params.prompt, params.seed = b"a red circle", 1
    asked = Sized(params, kind)
    settings = native._make("settings", structs.Settings())
    status = functions.mutoscope_resolve(settings, native._handle, asked.pointer)
    assert status == (OK if asked.is_taken else ERROR_ARGUMENT)
    assert settings.num_frames == (6 if asked.is_taken else 0)
    if not asked.is_taken:
        message = functions.mutoscope_last_error().decode()
        assert message.startswith("mutoscope_generate_params has ")


def test_what_lies_behind_the_struct_of_an_older_caller_is_not_looked_at(
    library: Library, native: NativePipeline
) -> None:
    params = structs.GenerateParams()
    ctypes.memset(ctypes.byref(params), 0xAA, ctypes.sizeof(params))
    size = structs.GenerateParams.prompt_inputs.offset
    library.check(library.functions.mutoscope_generate_params_init(params, size))
    params.prompt = b"a"
    assert params.num_conditions == 0xAAAAAAAAAAAAAAAA
    settings = native._make("settings", structs.Settings())
    native._call("resolve", settings, native._handle, params)
    assert settings.num_frames == 6


@pytest.mark.parametrize("kind", list(SIZES))
def test_results_of_other_callers_follow_the_rules(
    library: Library, native: NativePipeline, kind: str
) -> None:
    functions, handle = library.functions, native._handle
    params = native._make("generate_params", structs.GenerateParams())
    params.prompt, params.num_inference_steps = b"a", 1
    frames = (c_uint8 * (6 * 32 * 48 * 3))()
    calls: dict[str, Callable[[Any], int]] = {
        "bundle_info": lambda p: functions.mutoscope_pipeline_info(p, handle),
        "condition_info": lambda p: functions.mutoscope_pipeline_condition(p, handle, b"strength"),
        "settings": lambda p: functions.mutoscope_resolve(p, handle, params),
        "result": lambda p: functions.mutoscope_generate(p, frames, len(frames), handle, params),
    }
    for name, call in calls.items():
        size = ctypes.sizeof(STRUCTS[name])
        given = Sized(native._make(name, STRUCTS[name]()), kind)
        before = given.data
        assert call(given.pointer) == (OK if given.is_taken else ERROR_ARGUMENT), name
        assert given.data[:4] == before[:4], name
        assert (given.data[4:size] != before[4:size]) is given.is_taken, name
        assert given.data[size:] == before[size:], name
        assert given.guard == b"\xaa" * 64, name


# ---- null pointers


def test_every_null_pointer_is_refused(
    library: Library, native: NativePipeline, text_bundle: Path
) -> None:
    functions, handle = library.functions, native._handle
    params = native._make("generate_params", structs.GenerateParams())
    params.prompt = b"a"
    info = native._make("bundle_info", structs.BundleInfo())
    condition = native._make("condition_info", structs.ConditionInfo())
    settings = native._make("settings", structs.Settings())
    result = native._make("result", structs.Result())
    frames = (c_uint8 * (6 * 32 * 48 * 3))()
    ids, names, count = (c_int64 * 4)(), POINTER(c_char_p)(), c_size_t()
    steps, text, opened = POINTER(c_int32)(), c_char_p(), c_void_p()
    path = bytes(text_bundle)
    # Of each function the arguments that it takes; those whose place is listed may not be null.
    calls: list[tuple[str, list[Any], tuple[int, ...]]] = [
        ("pipeline_open", [byref(opened), path, None], (0, 1)),
        ("pipeline_load", [handle], (0,)),
        ("pipeline_unload", [handle], (0,)),
        ("pipeline_info", [info, handle], (0, 1)),
        ("pipeline_list", [byref(names), byref(count), handle, 0], (0, 1, 2)),
        ("pipeline_steps", [byref(steps), byref(count), handle, None], (0, 1, 2)),
        ("pipeline_condition", [condition, handle, b"strength"], (0, 1, 2)),
        ("pipeline_variant", [byref(text), handle, b"unet"], (0, 1, 2)),
        ("tokenize", [ids, 4, byref(count), handle, None, b"a", 1], (0, 2, 3, 5)),
        ("resolve", [settings, handle, params], (0, 1, 2)),
        ("generate", [result, frames, len(frames), handle, params], (1, 3, 4)),
        ("cancel", [handle], (0,)),
    ]
    for name, arguments, places in calls:
        function = getattr(functions, f"mutoscope_{name}")
        for place in places:
            changed = [None if number == place else a for number, a in enumerate(arguments)]
            assert function(*changed) == ERROR_ARGUMENT, (name, place)
            message = functions.mutoscope_last_error().decode()
            assert message, (name, place)
            assert "\n" not in message
        assert function(*arguments) == OK, name
        if name == "pipeline_open":
            functions.mutoscope_pipeline_close(opened)
    functions.mutoscope_pipeline_close(None)


def test_the_strings_of_params_may_be_null_and_their_lists_may_not(
    library: Library, native: NativePipeline, text_bundle: Path
) -> None:
    functions = library.functions
    params = native._make("pipeline_params", structs.PipelineParams())
    params.num_provider_options = 2
    handle = c_void_p()
    for keys, values in ((None, None), ((c_char_p * 2)(b"a"), (c_char_p * 2)(b"1", b"2"))):
        params.provider_option_keys, params.provider_option_values = keys, values
        status = functions.mutoscope_pipeline_open(byref(handle), bytes(text_bundle), params)
        assert status == ERROR_ARGUMENT
        assert not handle
    for name in ("prompt_inputs", "negative_prompt_inputs", "conditions"):
        asked = native._make("generate_params", structs.GenerateParams())
        asked.prompt = b"a"
        setattr(asked, f"num_{name}", 1)
        settings = native._make("settings", structs.Settings())
        assert functions.mutoscope_resolve(settings, native._handle, asked) == ERROR_ARGUMENT, name
    nameless = native._make("generate_params", structs.GenerateParams())
    nameless.prompt, nameless.num_conditions = b"a", 1
    nameless.conditions = (structs.Number * 1)(structs.Number(None, 1))
    settings = native._make("settings", structs.Settings())
    assert functions.mutoscope_resolve(settings, native._handle, nameless) == ERROR_ARGUMENT


# ---- values that no binding would give


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"data": None}, ERROR_ARGUMENT),
        ({"shape": None}, ERROR_ARGUMENT),
        ({"rank": -1}, ERROR_ARGUMENT),
        ({"rank": 2**31 - 1}, ERROR_ARGUMENT),
        ({"dtype": 3}, ERROR_ARGUMENT),
        ({"dtype": -1}, ERROR_ARGUMENT),
        ({"rank": 0}, ERROR_PARAMETER),
        ({"rank": 4}, ERROR_PARAMETER),
        ({"dtype": 2}, ERROR_PARAMETER),
        ({"sizes": (1, 4, 2**62, 2**62, 2**62)}, ERROR_ARGUMENT),
        ({"sizes": (1, 4, -1, 4, 6)}, ERROR_ARGUMENT),
        ({"sizes": (1, 4, -(2**63), 4, 6)}, ERROR_ARGUMENT),
        ({"sizes": (1, 4, 0, 4, 6)}, ERROR_PARAMETER),
    ],
    ids=str,
)
def test_an_array_that_cannot_be_is_refused(
    library: Library, native: NativePipeline, changes: dict[str, Any], status: int
) -> None:
    given = dict(changes)
    data = np.zeros((1, 4, 6, 4, 6), dtype=np.float32)
    sizes = (c_int64 * 5)(*given.pop("sizes", data.shape))
    array = structs.Array(None, data.ctypes.data, sizes, 5, 0)
    for name, value in given.items():
        setattr(array, name, value)
    params = native._make("generate_params", structs.GenerateParams())
    params.prompt, params.latents = b"a", ctypes.pointer(array)
    settings = native._make("settings", structs.Settings())
    found = library.functions.mutoscope_resolve(settings, native._handle, params)
    assert found == status, library.functions.mutoscope_last_error()
    assert settings.num_frames == 0


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("pipeline_params", "memory", 2),
        ("pipeline_params", "memory", -1),
        ("pipeline_params", "num_threads", -1),
        ("generate_params", "guidance_passes", 3),
        ("generate_params", "guidance_passes", -1),
    ],
)
def test_a_choice_that_there_is_not_is_refused(
    library: Library,
    native: NativePipeline,
    text_bundle: Path,
    name: str,
    field: str,
    value: int,
) -> None:
    params = native._make(name, STRUCTS[name]())
    setattr(params, field, value)
    if name == "pipeline_params":
        handle = c_void_p()
        functions = library.functions
        status = functions.mutoscope_pipeline_open(byref(handle), bytes(text_bundle), params)
    else:
        params.prompt = b"a"
        settings = native._make("settings", structs.Settings())
        status = library.functions.mutoscope_resolve(settings, native._handle, params)
    assert status < 0
    message = library.functions.mutoscope_last_error().decode()
    assert field in message
    assert str(value) in message


def test_a_list_that_there_is_not_is_refused(library: Library, native: NativePipeline) -> None:
    names, count = POINTER(c_char_p)(), c_size_t(7)
    for kind in (-1, 6, 2**31 - 1):
        status = library.functions.mutoscope_pipeline_list(
            byref(names), byref(count), native._handle, kind
        )
        assert status == ERROR_ARGUMENT
        assert not names
        assert count.value == 7


# ---- out parameters


def test_out_parameters_are_not_written_by_a_call_that_fails(
    library: Library, native: NativePipeline, tmp_path: Path
) -> None:
    functions = library.functions
    handle = c_void_p(7)
    assert functions.mutoscope_pipeline_open(byref(handle), bytes(tmp_path), None) < 0
    assert handle.value == 7
    params = native._make("generate_params", structs.GenerateParams())
    params.prompt, params.height = b"a", 17
    settings = native._make("settings", structs.Settings())
    result = native._make("result", structs.Result())
    condition = native._make("condition_info", structs.ConditionInfo())
    before = [bytes(struct) for struct in (settings, result, condition)]
    frames = np.full(6 * 32 * 48 * 3, 77, dtype=np.uint8)
    pointer = frames.ctypes.data_as(POINTER(c_uint8))
    assert functions.mutoscope_resolve(settings, native._handle, params) == ERROR_PARAMETER
    assert (
        functions.mutoscope_generate(result, pointer, frames.nbytes, native._handle, params)
        == ERROR_PARAMETER
    )
    assert functions.mutoscope_pipeline_condition(condition, native._handle, b"x") < 0
    assert [bytes(struct) for struct in (settings, result, condition)] == before
    assert (frames == 77).all()
    text, count = c_char_p(b"as it was"), c_size_t(7)
    assert functions.mutoscope_pipeline_variant(byref(text), native._handle, b"x") < 0
    assert text.value == b"as it was"
    ids = (c_int64 * 2)(5, 5)
    tokenize = functions.mutoscope_tokenize
    assert tokenize(ids, 2, byref(count), native._handle, None, b"\xff", 1) < 0
    assert (count.value, list(ids)) == (7, [5, 5])


def test_tokenize_says_how_much_room_it_needs(library: Library, native: NativePipeline) -> None:
    tokenize, handle = library.functions.mutoscope_tokenize, native._handle
    ids, count, text = (c_int64 * 5)(*[7] * 5), c_size_t(), b"a red circle"
    assert tokenize(None, 0, byref(count), handle, None, text, len(text)) == OK
    assert count.value == 5
    assert tokenize(ids, 4, byref(count), handle, None, text, len(text)) == OK
    assert (count.value, list(ids)) == (5, [7] * 5)
    assert tokenize(ids, 5, byref(count), handle, b"input_ids", text, len(text)) == OK
    assert list(ids) == native.tokenize("a red circle") != [7] * 5


def test_frames_need_room(library: Library, native: NativePipeline) -> None:
    functions = library.functions
    params = native._make("generate_params", structs.GenerateParams())
    params.prompt, params.seed, params.num_inference_steps = b"a", 1, 1
    settings = native._make("settings", structs.Settings())
    assert functions.mutoscope_resolve(settings, native._handle, params) == OK
    assert settings.frames_bytes == 6 * 32 * 48 * 3
    frames = np.full(settings.frames_bytes + 8, 77, dtype=np.uint8)
    pointer = frames.ctypes.data_as(POINTER(c_uint8))
    for room in (0, settings.frames_bytes - 1):
        status = functions.mutoscope_generate(None, pointer, room, native._handle, params)
        assert status == ERROR_ARGUMENT
        message = functions.mutoscope_last_error().decode()
        assert str(settings.frames_bytes) in message
        assert (frames == 77).all()
    assert functions.mutoscope_generate(None, pointer, 2**63, native._handle, params) == OK
    assert (frames[-8:] == 77).all()
    expected = native.generate("a", seed=1, num_inference_steps=1).frames
    np.testing.assert_array_equal(frames[:-8].reshape(expected.shape), expected)
