"""TensorRT for RTX builds engines of every component, for many sizes and for one."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mutoscope.export import export_checkpoint
from mutoscope.runtime.manifest import Manifest
from tests.conftest import MakeOnce
from tests.tensorrt_build import build_component, make_cases

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13 (Linux, x86-64)")

FAMILIES = ("tiny", "sdxl", "modelscope", "i2vgen", "svd")
PRESETS = ("any", "fixed")


def check_all_components(bundle: Path, preset: str, folder: Path) -> None:
    """Build them all: what TensorRT does not take raises."""
    components = Manifest.load(bundle / "manifest.json").components
    assert {"unet", "vae_decoder"} <= components.keys()
    sizes = [build_component(bundle, name, preset, folder) for name in components]
    assert min(sizes) > 0


def test_engines_are_built_of_all_components_for_many_sizes(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    check_all_components(tiny_bundle, "any", tmp_path)


def test_an_engine_for_one_size_is_smaller(tiny_bundle: Path, tmp_path: Path) -> None:
    many, one = (build_component(tiny_bundle, "vae_decoder", p, tmp_path) for p in PRESETS)
    assert one < many


# A build of a UNet takes 10 to 70 seconds.
@pytest.mark.slow
@pytest.mark.parametrize(("family", "preset"), make_cases(FAMILIES))
def test_engines_are_built_of_every_family_in_float32(
    family: str, preset: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check_all_components(request.getfixturevalue(f"{family}_bundle"), preset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "preset"), make_cases(FAMILIES))
def test_engines_are_built_of_every_family_in_float16(
    family: str,
    preset: str,
    request: pytest.FixtureRequest,
    make_once: MakeOnce,
    tmp_path: Path,
) -> None:
    checkpoint: Path = request.getfixturevalue(f"{family}_checkpoint")

    def export(folder: Path) -> Path:
        report = export_checkpoint(
            checkpoint, folder / family, dtype="float16", num_inference_steps=(1,)
        )
        return report.bundle

    bundle = make_once(f"bundle-float16-{family}", export)
    graph = onnx.load(bundle / "unet" / "model.onnx").graph
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.initializer}
    check_all_components(bundle, preset, tmp_path)
