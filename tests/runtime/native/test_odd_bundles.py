"""Bundles that no exporter writes: they work as in Python, or are refused, and never crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mutoscope.runtime.errors import BundleError, EngineError, MutoscopeError, ParameterError
from mutoscope.runtime.native import Library, NativePipeline
from mutoscope.runtime.pipeline import VideoPipeline
from tests.runtime.hand_made_bundle import FEATURES, save_graph, write_manifest
from tests.runtime.native.native_bundles import (
    CHUNKS_LIMIT,
    EMBEDDING,
    MAX_LENGTH,
    PAD_TOKEN_ID,
    read_manifest,
)
from tests.runtime.native.parity import check_parity, generate_with_both
from tests.runtime.native.same_errors import check_same

Change = Callable[[dict[str, Any]], object]


def change_manifest(path: Path, change: Change) -> None:
    """Change the manifest of a bundle; sizes and digests are those of the files as they are."""
    manifest = read_manifest(path)
    change(manifest)
    write_manifest(path, manifest)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_a_component_without_outputs_is_refused(
    library: Library, own_bundle: Path, component: str
) -> None:
    change_manifest(own_bundle, lambda m: m["components"][component].update(outputs={}))
    with (
        pytest.raises((BundleError, EngineError), match=component),
        NativePipeline.open(own_bundle, library=library) as pipeline,
    ):
        pipeline.generate("a")


@pytest.mark.parametrize("source", ["strength", "timestep", "frame_rate"])
def test_a_number_where_a_batch_has_two_axes_is_refused(
    library: Library, own_bundle: Path, source: str
) -> None:
    record = {"dtype": "float32", "shape": ["batch", "n"], "source": source}
    change_manifest(own_bundle, lambda m: m["components"]["unet"]["inputs"].update(strength=record))
    with NativePipeline.open(own_bundle, library=library) as pipeline:
        for passes in ("batched", "separate"):
            with pytest.raises((EngineError, ParameterError)):
                pipeline.generate("a", guidance_passes=passes)


def test_frames_that_depend_on_each_other_are_not_cut(library: Library, own_bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["latents"]["vae_scale_factor_temporal"] = 4
        manifest["limits"]["num_frames"] = {"minimum": 1, "maximum": 61, "multiple": 4, "offset": 1}
        manifest["defaults"]["num_frames"] = 61
        assert manifest["components"]["vae_decoder"]["decoder"]["independent_frames"]

    change_manifest(own_bundle, change)
    # Before any work: by then the plan of the decoder is known.
    with (
        pytest.raises(MutoscopeError),
        NativePipeline.open(
            own_bundle, library=library, memory_limit_bytes=CHUNKS_LIMIT
        ) as pipeline,
    ):
        pipeline.resolve("a")


def test_embeddings_are_enough_where_the_encoder_has_more_outputs(
    library: Library, own_bundle: Path
) -> None:
    path = own_bundle / "text_encoder" / "model.onnx"
    graph = onnx.load(path)
    shape = ["batch", "sequence", FEATURES]
    graph.graph.node.append(helper.make_node("Neg", ["prompt_embeds"], ["hidden"]))
    graph.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, shape))
    save_graph(graph, path)
    hidden = {"dtype": "float32", "shape": shape}
    change_manifest(
        own_bundle, lambda m: m["components"]["text_encoder"]["outputs"].update(hidden=hidden)
    )
    embeds = EMBEDDING[np.full((1, MAX_LENGTH), PAD_TOKEN_ID)]
    arguments: dict[str, Any] = {"prompt_embeds": embeds, "seed": 1}
    check_parity(
        generate_with_both(library, own_bundle, negative_prompt_embeds=-embeds, **arguments)
    )
    check_parity(generate_with_both(library, own_bundle, guidance_scale=1.0, **arguments))


@pytest.mark.parametrize("guidance_passes", ["separate", "batched"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_denoiser_in_float64_works_as_in_python(
    library: Library, own_bundle: Path, guidance_scale: float, guidance_passes: str
) -> None:
    path = own_bundle / "unet" / "model.onnx"
    graph = onnx.load(path)
    (last,) = (node for node in graph.graph.node if "out_sample" in node.output)
    last.output[:] = ["single"]
    graph.graph.node.append(
        helper.make_node("Cast", ["single"], ["out_sample"], to=TensorProto.DOUBLE)
    )
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    save_graph(graph, path)
    change_manifest(
        own_bundle,
        lambda m: m["components"]["unet"]["outputs"]["out_sample"].update(dtype="float64"),
    )
    pair = generate_with_both(
        library,
        own_bundle,
        prompt="a red circle",
        seed=1,
        guidance_scale=guidance_scale,
        guidance_passes=guidance_passes,
    )
    check_parity(pair)


def test_of_schedulers_that_differ_in_case_alone_none_is_meant(
    library: Library, own_bundle: Path
) -> None:
    table = {"4": "schedules/ddim_4.json"}
    change_manifest(own_bundle, lambda m: m["schedules"].update(DDIM=table))
    arguments: dict[str, Any] = {"seed": 1, "scheduler": "Euler-Ancestral"}
    check_parity(generate_with_both(library, own_bundle, prompt="a", **arguments))
    with (
        NativePipeline.open(own_bundle, library=library) as native,
        VideoPipeline.open(own_bundle) as python,
    ):
        assert native.list_names("schedulers") == ("ddim", "euler-ancestral", "DDIM")
        for name in ("ddim", "DDIM", "dDIM"):
            check_same(
                lambda name=name: native.generate("a", scheduler=name),
                lambda name=name: python.generate("a", scheduler=name),
                ParameterError,
            )


@pytest.mark.parametrize("minimum", [-5, 0])
def test_a_clip_of_no_frames_is_refused_whatever_the_bundle_allows(
    library: Library, own_bundle: Path, minimum: int
) -> None:
    change_manifest(own_bundle, lambda m: m["limits"]["num_frames"].update(minimum=minimum))
    with NativePipeline.open(own_bundle, library=library) as pipeline:
        for num_frames in (-1, -5, -(2**31) + 1):
            for call in (pipeline.resolve, pipeline.generate):
                with pytest.raises(ParameterError, match=f"^num_frames is {num_frames}; "):
                    call("a", num_frames=num_frames)
        assert pipeline.resolve("a", num_frames=1)["num_frames"] == 1
