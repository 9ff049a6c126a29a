"""Read motion adapters, and join one with an image UNet without a second copy of the weights.

Source: Guo et al., "AnimateDiff", 2023; diffusers.MotionAdapter, UNetMotionModel.from_unet2d and
the key names of diffusers' single file loader (tests/export/test_motion_adapter.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutoscope.export.checkpoint import check_keys, load_json_object
from mutoscope.export.errors import CheckpointError
from mutoscope.export.hub import name_component, name_path
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.weight_files import (
    check_safetensors,
    find_weight_files,
    read_shapes,
    read_tensors,
)

Shapes = Mapping[str, tuple[int, ...]]
# What the file of an original adapter does not tell; all published ones have these.
NUM_ATTENTION_HEADS = 8
NORM_NUM_GROUPS = 32
DEFAULT_MAX_SEQ_LENGTH = 32
# Files may hold the sinusoids of the positions rounded to bfloat16, whose step near 1 is 2**-8.
POSITION_TOLERANCE = 2**-8
_ORIGINAL = "temporal_transformer"
_POSITIONS = re.compile(r".+(pos_encoder|pos_embed)\.pe")
_MODULE = re.compile(
    r"(?P<side>down_blocks|up_blocks|mid_block)(?:\.(?P<block>\d+))?\.motion_modules\."
    r"(?P<layer>\d+)\.(?:transformer_blocks\.(?P<depth>\d+)\.)?.+"
)


@dataclass(frozen=True)
class MotionAdapterFiles:
    """A motion adapter whose weights are not read yet.

    Attributes:
        name: For people.
        config: The arguments of diffusers.MotionAdapter.
        paths: Its safetensors files.
        original: The keys are those of AnimateDiff's own files, not those of diffusers.
    """

    name: str
    config: dict[str, Any]
    paths: tuple[Path, ...]
    original: bool = False

    def read_weights(self) -> Iterator[tuple[str, Any]]:
        """Yield each weight under its name in diffusers, as float32.

        An original file's positions are left out, as diffusers leaves them out: the model computes
        the same.

        Raises:
            CheckpointError: The positions are others than those that the model computes.
        """
        for key, tensor in read_tensors(self.paths):
            if self.original and _POSITIONS.fullmatch(key):
                self._check_positions(key, tensor)
            for name in _convert_keys({key: tensor}):
                yield name, tensor

    def _check_positions(self, key: str, tensor: Any) -> None:
        """Raise `CheckpointError` unless these are the sinusoids of diffusers."""
        from diffusers.models.embeddings import SinusoidalPositionalEmbedding

        expected = SinusoidalPositionalEmbedding(tensor.shape[2], tensor.shape[1]).pe
        error = float((tensor - expected).abs().max())
        if not error <= POSITION_TOLERANCE:
            raise CheckpointError(
                f"{self.name} has positions of its own in {key} ({error:.2g} from the sinusoids), "
                "which diffusers would ignore: convert it to a MotionAdapter folder that holds them"
            )


def read_motion_adapter(path: str | Path) -> MotionAdapterFiles:
    """Return the adapter in a MotionAdapter folder or in a single safetensors file.

    A file has no configuration, so it is found from the names and shapes of the weights: those of
    AnimateDiff v1, v2, v3 and SDXL, AnimateLCM and AnimateDiff-Lightning, in the names of diffusers
    or in AnimateDiff's own. Only the headers are read.

    Raises:
        CheckpointError: It is no motion adapter, or not a whole one.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    check_safetensors(path)
    shapes = read_shapes([path])
    original = any(_ORIGINAL in key for key in shapes)
    return MotionAdapterFiles(path.name, _infer_config(path.name, shapes), (path,), original)


def check_adapter_fits(
    adapter: MotionAdapterFiles, unet: Mapping[str, Any], checkpoint_name: str
) -> None:
    """Raise `CheckpointError` if the adapter was made for a UNet of other sizes.

    Args:
        adapter: Of `read_motion_adapter`.
        unet: The configuration of the UNet2DConditionModel.
        checkpoint_name: For the message.
    """
    channels = tuple(unet.get("block_out_channels", (320, 640, 1280, 1280)))
    layers = _expand(unet.get("layers_per_block", 2), len(channels))
    found = tuple(adapter.config["block_out_channels"])
    found_layers = _expand(adapter.config["motion_layers_per_block"], len(found))
    reason = None
    if found != channels:
        reason = f"its blocks are {found}, the unet's are {channels}"
    elif found_layers != layers:
        reason = f"its blocks have {found_layers} layers, the unet's have {layers}"
    elif adapter.config.get("conv_in_channels"):
        reason = f"it brings a first layer of {adapter.config['conv_in_channels']} channels (PIA)"
    if reason:
        raise CheckpointError(
            f"the motion adapter {adapter.name} does not fit the unet of {checkpoint_name} "
            f"({reason}): use one made for this model"
        )


def join_motion_unet(unet_folder: Path, adapter: MotionAdapterFiles) -> Any:
    """Return the UNetMotionModel of an image UNet and an adapter: float32, in eval mode.

    Equal to `UNetMotionModel.from_unet2d`, which needs three copies of most weights: here the model
    is empty until each weight is put into it. Float32 weights stay views into their files. Unlike
    there, the weights of `add_embedding` (SDXL) are the checkpoint's; diffusers 0.42 leaves them
    random.

    Args:
        unet_folder: The folder of a UNet2DConditionModel.
        adapter: Of `read_motion_adapter`.

    Raises:
        CheckpointError: They do not fit, or one of them is not whole.
    """
    where = name_component(unet_folder)
    config = load_json_object(unet_folder / "config.json")
    check_adapter_fits(adapter, config, name_path(unet_folder.parent))
    paths = find_weight_files(unet_folder).paths
    unet = _make_empty_unet(where, config, adapter)
    weights = dict(read_tensors(paths))
    stray = [key for key in weights if ".motion_modules." in key]
    if stray:
        raise CheckpointError(f"{where} has motion modules already: leave out {adapter.name}")
    weights.update(adapter.read_weights())
    try:
        missing, unexpected = unet.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"the motion adapter {adapter.name} does not fit the unet of "
            f"{name_path(unet_folder.parent)} ({reason}): use one made for this model"
        ) from err
    # The positions are computed where the file has none.
    missing = [key for key in missing if not _POSITIONS.fullmatch(key)]
    for name, of_adapter in ((where, False), (adapter.name, True)):
        check_keys(
            name,
            type(unet).__name__,
            missing=[key for key in missing if (".motion_modules." in key) == of_adapter],
            unexpected=[key for key in unexpected if (".motion_modules." in key) == of_adapter],
        )
    return unet.eval().requires_grad_(False)


def make_joined_shapes(
    unet_folder: Path, adapter: MotionAdapterFiles
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the joined UNet; none is read.

    Raises:
        CheckpointError: They do not fit.
    """
    where = name_component(unet_folder)
    unet = _make_empty_unet(where, load_json_object(unet_folder / "config.json"), adapter)
    return {name: tuple(weight.shape) for name, weight in unet.named_parameters()}


def _make_empty_unet(where: str, config: dict[str, Any], adapter: MotionAdapterFiles) -> Any:
    """Return the joined model with its buffers, and parameters that take no memory."""
    from accelerate import init_empty_weights
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    try:
        with quiet_libraries(), init_empty_weights(include_buffers=False):
            return UNetMotionModel.from_unet2d(
                UNet2DConditionModel.from_config(config),
                MotionAdapter.from_config(adapter.config),
                load_weights=False,
            )
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise CheckpointError(
            f"{where} cannot be joined with the motion adapter {adapter.name}: {reason}"
        ) from err


def _read_folder(folder: Path) -> MotionAdapterFiles:
    """Return the adapter in a folder that diffusers saved."""
    from diffusers import MotionAdapter

    config = load_json_object(folder / "config.json")
    if config.get("_class_name") != "MotionAdapter":
        raise CheckpointError(
            f"{name_path(folder)} is a {config.get('_class_name')}, not a MotionAdapter: save one "
            "with adapter.save_pretrained(FOLDER)"
        )
    settings, _, _ = MotionAdapter.extract_init_dict(config)
    return MotionAdapterFiles(name_path(folder), settings, find_weight_files(folder).paths)


def _convert_keys(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights under their names in diffusers; an original file's positions go."""
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    converted: dict[str, Any] = convert_animatediff_checkpoint_to_diffusers(plain)
    return converted


def _infer_config(name: str, shapes: Shapes) -> dict[str, Any]:
    """Return the configuration of the adapter that has weights of these names and shapes."""
    positions = {shape[1] for key, shape in shapes.items() if _POSITIONS.fullmatch(key)}
    converted = _convert_keys(shapes)
    strays = [key for key in converted if "lora" in key or not _MODULE.fullmatch(key)]
    if strays or "down_blocks.0.motion_modules.0.norm.weight" not in converted:
        raise CheckpointError(_explain_no_adapter(name, strays or list(converted)[:1]))
    # How deep the transformer of each module is; (side, block) holds its modules in order.
    depths: dict[tuple[str, int], dict[int, int]] = {}
    for key in converted:
        match = _MODULE.fullmatch(key)
        assert match is not None
        modules = depths.setdefault((match["side"], int(match["block"] or 0)), {})
        layer, depth = int(match["layer"]), int(match["depth"] or 0) + 1
        modules[layer] = max(depth, modules.get(layer, 1))
    num_blocks = sum(side == "down_blocks" for side, _ in depths)
    try:
        down = [depths["down_blocks", block] for block in range(num_blocks)]
        channels = [
            converted[f"down_blocks.{block}.motion_modules.0.norm.weight"][0]
            for block in range(num_blocks)
        ]
    except KeyError as err:
        raise CheckpointError(f"{name} lacks {err.args[0]}: download it again") from err
    middle = depths.get(("mid_block", 0), {})
    return {
        "block_out_channels": channels,
        "motion_layers_per_block": _shorten([len(modules) for modules in down]),
        "motion_transformer_layers_per_block": _shorten([modules[0] for modules in down]),
        "motion_mid_block_layers_per_block": len(middle) or 1,
        "motion_transformer_layers_per_mid_block": middle.get(0, 1),
        "motion_num_attention_heads": NUM_ATTENTION_HEADS,
        "motion_norm_num_groups": NORM_NUM_GROUPS,
        "motion_max_seq_length": max(positions, default=DEFAULT_MAX_SEQ_LENGTH),
        "use_motion_mid_block": bool(middle),
    }


def _explain_no_adapter(name: str, strays: list[str]) -> str:
    """Return the one line for a file of another kind."""
    if any("lora" in key for key in strays):
        return f"{name} is a LoRA, not a motion adapter: give it with --lora"
    example = f" (it has {strays[0]})" if strays else ""
    return (
        f"{name} is not a motion adapter{example}: use a file of AnimateDiff, AnimateLCM or "
        "AnimateDiff-Lightning, or a MotionAdapter folder"
    )


def _expand(value: Any, count: int) -> tuple[Any, ...]:
    """Return one value for each block."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * count


def _shorten(values: list[int]) -> int | list[int]:
    """Return one number where all are equal."""
    return values[0] if len(set(values)) == 1 else values
