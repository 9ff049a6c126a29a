import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderTiny
from onnx import TensorProto, helper, numpy_helper

from mutoscope.engines.onnxruntime_engine import OnnxruntimeEngine
from mutoscope.export.components.frames import FrameDecoder
from mutoscope.export.decoder_memory import measure_decoder
from mutoscope.export.decoder_tiles import add_tiles
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.families.stable_video import FrameDecoder as TemporalFrameDecoder
from mutoscope.export.float16 import convert_to_float16
from mutoscope.export.graph import make_graph, save_graph
from mutoscope.export.weights import store_weights_as_float16
from mutoscope.runtime.decoding_records import TilesRecord
from mutoscope.runtime.tiled_decoding import decode_in_tiles
from tests.checkpoints import randomise

# Statistics are summed in another order, and the frame is rounded to whole levels.
MAX_TILE_DIFFERENCE = 1
# The same, where values between the stages are float16 in both: a statistic in its last digit moves
# some of them by 1 of 2048, a fraction of a level.
MAX_FLOAT16_DIFFERENCE = 1
GRAPH = "vae_decoder/model.onnx"
SCALE = 4


def make_vae() -> FrameDecoder:
    """Three blocks: attention in the middle, a shortcut, norms of 4 groups."""
    torch.manual_seed(5)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.encoder = vae.quant_conv = None
    return FrameDecoder(vae)


def make_component(module: torch.nn.Module, scale: int = SCALE) -> ComponentExport:
    from mutoscope.runtime.manifest import TensorRecord

    axes = ("latent_height", "latent_width")
    sizes = {"batch": 2, "num_frames": 3, axes[0]: 5, axes[1]: 7}
    sizes |= {"height": 5 * scale, "width": 7 * scale}
    return ComponentExport(
        name="vae_decoder",
        module=module,
        inputs={"latents": TensorRecord("float32", ("batch", 4, "num_frames", *axes), "latents")},
        outputs={
            "frames": TensorRecord("uint8", ("batch", "num_frames", "height", "width", 3)),
        },
        trace_sizes=sizes,
        parity_sizes=(sizes,),
    )


def export(folder: Path, module: torch.nn.Module, how: str = "float32", scale: int = SCALE) -> Path:
    """A folder with an exported decoder, as in a bundle."""
    randomise(module)
    if how == "float16-weights":
        module.half().float()
    if how == "float16":
        convert_to_float16(module)
    model = make_graph(make_component(module, scale), "float16" if how == "float16" else "float32")
    if how == "float16-weights":
        assert store_weights_as_float16(model) > 0
    save_graph(model, folder / GRAPH)
    return folder


def cut(bundle: Path) -> TilesRecord:
    tiles = add_tiles(measure_decoder(bundle / GRAPH), bundle, GRAPH).tiles
    assert tiles is not None
    return tiles


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(how: str) -> Path:
        if how not in made:
            made[how] = export(tmp_path_factory.mktemp(how), make_vae(), how)
        return made[how]

    return make


def compare(bundle: Path, tiles: TilesRecord, height: int, width: int, tile_height: int) -> int:
    """The largest difference of a frame in tiles from the whole one."""
    shape = (1, 4, 1, height, width)
    latents = np.random.default_rng(height).standard_normal(shape, dtype=np.float32)
    engine = OnnxruntimeEngine(bundle / GRAPH, num_threads=1)
    whole = engine.run({"latents": latents})["frames"][0].astype(int)
    assert whole.std() > 5, "a flat frame would prove nothing"

    def open_graph(path: str) -> OnnxruntimeEngine:
        return OnnxruntimeEngine(bundle / path, num_threads=1)

    frame = decode_in_tiles(open_graph, latents, tiles, tile_height)
    return int(np.abs(frame - whole).max())


@pytest.mark.parametrize("how", ["float32", "float16-weights", "float16"])
def test_tiles_of_every_height_make_the_whole_frame(
    bundles: Callable[[str], Path], how: str
) -> None:
    bundle = bundles(how)
    tiles = cut(bundle)
    allowed = MAX_FLOAT16_DIFFERENCE if how == "float16" else MAX_TILE_DIFFERENCE
    for height, width, tile_height in [
        *((13, 9, 1), (13, 9, 2), (13, 9, 5), (13, 9, 12), (13, 9, 13), (13, 9, 40)),
        *((1, 6, 1), (2, 1, 1), (8, 3, 4), (24, 17, 7)),
    ]:
        difference = compare(bundle, tiles, height, width, tile_height)
        assert difference <= allowed, (height, width, tile_height)


def test_a_shorter_halo_would_be_seen(bundles: Callable[[str], Path]) -> None:
    bundle = bundles("float32")
    tiles = cut(bundle)
    assert all(stage.halo >= 1 for stage in tiles.stages)
    without = tuple(dataclasses.replace(stage, halo=0) for stage in tiles.stages)
    assert compare(bundle, dataclasses.replace(tiles, stages=without), 13, 9, 4) > 5


def test_statistics_of_one_tile_would_be_seen(bundles: Callable[[str], Path]) -> None:
    bundle = bundles("float32")
    tiles = cut(bundle)
    assert sum(stage.norm is not None for stage in tiles.stages) >= 8
    assert {stage.norm.groups for stage in tiles.stages if stage.norm is not None} == {4}
    without = tuple(
        dataclasses.replace(s, norm=dataclasses.replace(s.norm, epsilon=1.0) if s.norm else None)
        for s in tiles.stages
    )
    assert compare(bundle, dataclasses.replace(tiles, stages=without), 13, 9, 4) > 5


def test_the_graphs_of_tiles_are_small_and_read_the_decoders_weights(
    bundles: Callable[[str], Path],
) -> None:
    bundle = bundles("float32")
    tiles = cut(bundle)
    names = [tiles.head, *(stage.graph for stage in tiles.stages)]
    assert sorted(path.name for path in (bundle / "vae_decoder").iterdir()) == sorted(
        ["model.onnx", "model.onnx.data", *(Path(name).name for name in names)]
    )
    whole = (bundle / GRAPH).stat().st_size
    assert all((bundle / name).stat().st_size < whole for name in names)
    assert tiles.weights_bytes < measure_decoder(bundle / GRAPH).weights_bytes


def test_a_decoder_without_norms_is_cut_by_the_reach_of_its_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(6)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
    )
    vae.encoder = None
    bundle = export(tmp_path, FrameDecoder(vae))
    tiles = cut(bundle)
    assert all(stage.norm is None for stage in tiles.stages)
    assert max(stage.halo for stage in tiles.stages) > 1
    for tile_height in (1, 3, 12):
        assert compare(bundle, tiles, 13, 9, tile_height) <= MAX_TILE_DIFFERENCE


def test_a_decoder_whose_frames_see_each_other_has_no_tiles(tmp_path: Path) -> None:
    torch.manual_seed(7)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )
    vae.encoder = vae.quant_conv = None
    bundle = export(tmp_path, TemporalFrameDecoder(vae), scale=2)
    record = measure_decoder(bundle / GRAPH)
    assert not record.independent_frames
    assert add_tiles(record, bundle, GRAPH) == record
    # Nor is it cut where its frames are taken for independent.
    wrong = dataclasses.replace(record, independent_frames=True)
    assert add_tiles(wrong, bundle, GRAPH) == wrong
    assert len(list((bundle / "vae_decoder").iterdir())) == 2


def save_decoder(path: Path, inner: list[onnx.NodeProto]) -> None:
    """A decoder that enlarges latents of 3 channels twice, with nodes `large` -> `seen` after."""
    nodes = [
        helper.make_node("Squeeze", ["latents", "frame_axis"], ["flat"]),
        helper.make_node(
            "Resize",
            ["flat", "", "scales"],
            ["large"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        *inner,
        helper.make_node("Transpose", ["seen"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Unsqueeze", ["last", "first_axis"], ["clip"]),
        helper.make_node("Mul", ["clip", "level"], ["levels"]),
        helper.make_node("Add", ["levels", "level"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["frames"], to=TensorProto.UINT8),
    ]
    constants = {
        "frame_axis": np.array([2], np.int64),
        "first_axis": np.array([1], np.int64),
        "plane": np.array([2, 3], np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "level": np.array(20, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["B", 3, "F", "h", "w"])],
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["B", "F", "H", "W", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir()
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("inner", "is_cut"),
    [
        ([helper.make_node("Tanh", ["large"], ["seen"])], True),
        (
            [
                helper.make_node("ReduceMean", ["large", "plane"], ["mean"]),
                helper.make_node("Sub", ["large", "mean"], ["seen"]),
            ],
            False,
        ),
        (
            [
                helper.make_node(
                    "MaxPool", ["large"], ["seen"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
                )
            ],
            False,
        ),
    ],
)
def test_a_decoder_that_looks_at_more_than_it_is_known_to_has_no_tiles(
    tmp_path: Path, inner: list[onnx.NodeProto], is_cut: bool
) -> None:
    from mutoscope.runtime.decoding_records import DecoderRecord

    save_decoder(tmp_path / GRAPH, inner)
    record = DecoderRecord(True, 1.0, 0.0, 0)
    assert (add_tiles(record, tmp_path, GRAPH).tiles is not None) == is_cut
    assert len(list((tmp_path / "vae_decoder").iterdir())) == (3 if is_cut else 1)
