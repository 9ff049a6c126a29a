"""The header, the library and the binding agree: functions, statuses, the layout of structs."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mutoscope.runtime.native import Library
from mutoscope.runtime.native.library import ABI_VERSION, FUNCTIONS
from mutoscope.runtime.native.structs import INITIALISED, PLAIN
from tests.runtime.native.build import NATIVE

HEADER = NATIVE / "include" / "mutoscope.h"
STRUCTS = INITIALISED | PLAIN


def read_header() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def test_every_function_of_the_header_is_exported_and_bound(library: Library) -> None:
    declared = set(re.findall(r"MUTOSCOPE_API [^;]*?(mutoscope_\w+)\(", read_header()))
    assert len(declared) > 20
    assert set(FUNCTIONS) == declared
    for name in declared:
        assert getattr(library.functions, name)


def test_the_version_and_the_names_of_statuses_are_those_of_the_header(library: Library) -> None:
    header = read_header()
    (version,) = re.findall(r'#define MUTOSCOPE_VERSION "(.*)"', header)
    (abi_version,) = re.findall(r"#define MUTOSCOPE_ABI_VERSION (\d+)", header)
    assert library.version == version
    assert library.functions.mutoscope_abi_version() == int(abi_version) == ABI_VERSION
    statuses = re.findall(r"(MUTOSCOPE_OK|MUTOSCOPE_ERROR_\w+) = (-?\d+)", header)
    assert len(statuses) == 11
    for name, value in statuses:
        assert library.functions.mutoscope_status_name(int(value)).decode() == name
    for value in (1, -11, 2**31 - 1, -(2**31)):
        assert library.functions.mutoscope_status_name(value) == b"MUTOSCOPE_UNKNOWN"


def test_structs_of_the_binding_are_laid_out_as_by_the_c_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    expected, lines = [], []
    for name, struct in STRUCTS.items():
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        lines.append(f'printf("{name} %zu\\n", sizeof(mutoscope_{name}));')
        for field, *_ in struct._fields_:
            place = getattr(struct, field)
            expected.append(f"{name}.{field} {place.offset} {place.size}")
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof(mutoscope_{name}, {field}), '
                f"sizeof((({'mutoscope_' + name} *)0)->{field}));"
            )
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(
        '#include <stdio.h>\n#include "mutoscope.h"\nint main(void) {\n'
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Werror"]
    subprocess.run(
        [compiler, *options, f"-I{HEADER.parent}", str(source), "-o", str(program)], check=True
    )
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == expected


def test_the_binding_has_every_field_of_the_header() -> None:
    header = read_header()
    for name, struct in STRUCTS.items():
        (body,) = re.findall(rf"typedef struct mutoscope_{name} {{(.*?)}}", header, re.DOTALL)
        assert re.findall(r"(\w+);", body) == [field for field, *_ in struct._fields_]
