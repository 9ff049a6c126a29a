"""Pictures are prepared by the native runtime as by the Python one."""

import subprocess
from pathlib import Path

import PIL
import pytest

from mutoscope.runtime.native import Library
from tests.runtime.native.build import NATIVE
from tests.runtime.native.make_image_corpus import write_corpus

# The program needs neither onnxruntime nor the rest of the library.
SOURCES = ("images", "resampling", "blurring", "array", "text")
# As in CMakeLists.txt: a fused multiply-add would give other numbers.
COMPILE = ("c++", "-std=c++17", "-O2", "-ffp-contract=off")
PILLOW_MAJOR = int(PIL.__version__.split(".")[0])


@pytest.mark.skipif(PILLOW_MAJOR < 13, reason="Pillow took its passes in another order before 13")
def test_pictures_are_those_of_the_python_runtime(library: Library, tmp_path: Path) -> None:
    corpus, program = tmp_path / "image_corpus.bin", tmp_path / "images_test"
    num_cases = write_corpus(corpus)
    test = Path(__file__).with_name("images_test.cpp")
    sources = [str(NATIVE / "src" / f"{name}.cpp") for name in SOURCES]
    folders = [f"-I{NATIVE / 'src'}", f"-I{NATIVE / 'include'}"]
    subprocess.run([*COMPILE, *folders, str(test), *sources, "-o", str(program)], check=True)
    done = subprocess.run([program, corpus], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{num_cases} cases" in done.stdout
