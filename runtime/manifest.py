"""The manifest of a bundle: what its components are, what they take, and what they allow.

`manifest.json` is the only place where a bundle says what it is. It is written by the export and
read by every runtime (Python, C); neither has any other knowledge of a model family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mutoscope.runtime.decoding_records import DecoderRecord
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.image_records import ImageRecord
from mutoscope.runtime.json_records import read_record, write_record

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1

# Where the value of a graph input comes from, beside the tokenizers, images and conditions of the
# manifest and the outputs of earlier components. The runtime feeds inputs by source, not by name,
# so that a family may call its inputs what it likes and need only some of them.
LATENTS, TIMESTEP, NOISE = "latents", "timestep", "noise"
SIZES = ("num_frames", "height", "width", "frame_rate")
# What a text encoder makes of a prompt; the caller may give it in its place.
PROMPT_EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")
SOURCES = (LATENTS, TIMESTEP, NOISE, *SIZES, *PROMPT_EMBEDS)

# What denoisers are called, with anything after it: a bundle has at least one, and the first is the
# one that runs where a schedule table names none.
DENOISERS = ("unet", "transformer")
VAE_DECODER = "vae_decoder"
PREVIEW_DECODER = "preview_decoder"
DECODERS = (VAE_DECODER, PREVIEW_DECODER)

ZEROS = "zeros"


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file of the bundle."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """One input or output of a graph; a string in `shape` names an axis that may vary.

    Attributes:
        source: Where an input's value comes from.
        unconditional: What an input of the denoiser gets in the unconditional pass of guidance:
            "zeros", or None for what the negative prompt gives (the same value, where the source
            does not depend on a prompt).
    """

    dtype: str
    shape: tuple[int | str, ...]
    source: str | None = None
    unconditional: str | None = None


@dataclass(frozen=True)
class ParityRecord:
    """How close an output of a component came to the checkpoint at one set of input shapes."""

    shapes: dict[str, tuple[int, ...]]
    psnr_db: float
    max_abs_error: float
    cosine_similarity: float
    output: str = ""


@dataclass(frozen=True)
class ComponentRecord:
    """One exported component.

    `variants` maps a name ("float32", "float16", "int8") to the path of its graph, which a GPU
    runs; `default_variant` is the one that is run when none is asked for. `cpu_graphs` maps the
    variants that have one to the path of the graph for processors: the same rewritten for them,
    with the same weights, or, of "int8", another with weights of its own. A decoder says what it
    costs; its tiles are cut out of the variant "float32", or the default one where that is not
    there.

    One that was cut out of another component names it as `weights_of`: its graphs have no data
    files of their own, but read those of that component's graphs of the same variant and kind.
    """

    variants: dict[str, str]
    default_variant: str
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    parity: tuple[ParityRecord, ...] = ()
    decoder: DecoderRecord | None = None
    cpu_graphs: dict[str, str] = field(default_factory=dict)
    weights_of: str | None = None

    def choose_variant(self, variant: str | None) -> str:
        """Return the variant to run: the one that was asked for if there is one, or the default."""
        return variant if variant in self.variants else self.default_variant

    def find_cpu_graph(self, variant: str) -> str:
        """Return the path of what processors run of a variant: rewritten for them, or plain."""
        return self.cpu_graphs.get(variant, self.variants[variant])


@dataclass(frozen=True)
class TokenizerRecord:
    """The text tokenizer; ids are padded to `max_length` with `pad_token_id`."""

    file: str
    max_length: int
    pad_token_id: int


@dataclass(frozen=True)
class LatentsRecord:
    """The shape of the latents that belong to a clip, and the order of their noise.

    Attributes:
        start_noise_frames_first: The start noise is drawn as [B, F, C, H, W] and then transposed.
        step_noise_frames_first: The same, for the noise of the steps.
    """

    channels: int
    vae_scale_factor_spatial: int
    vae_scale_factor_temporal: int = 1
    start_noise_frames_first: bool = False
    step_noise_frames_first: bool = False


@dataclass(frozen=True)
class LimitRecord:
    """The values one size may take: `multiple * k + offset`, from `minimum` to `maximum`."""

    minimum: int
    maximum: int | None = None
    multiple: int = 1
    offset: int = 0

    def check(self, name: str, value: int) -> None:
        """Raise `ParameterError` with values that work, if `value` is not allowed."""
        if value < self.minimum:
            raise ParameterError(
                f"{name} is {value}; this bundle needs at least {self.minimum}: use {self.minimum}"
            )
        if self.maximum is not None and value > self.maximum:
            raise ParameterError(
                f"{name} is {value}; this bundle allows at most {self.maximum}: use {self.maximum}"
            )
        below = value - (value - self.offset) % self.multiple
        if below == value:
            return
        near = [below, below + self.multiple]
        allowed = [v for v in near if v >= self.minimum and v <= (self.maximum or v)]
        rule = f"{self.multiple}k + {self.offset}" if self.offset else f"{self.multiple}k"
        hint = " or ".join(str(v) for v in allowed)
        raise ParameterError(f"{name} is {value}; this bundle needs {rule}: use {hint}")


@dataclass(frozen=True)
class ConditionRecord:
    """A number that the denoiser takes and the user may set; its name is a source."""

    default: float
    minimum: float
    maximum: float
    description: str = ""

    def check(self, name: str, value: float) -> None:
        """Raise `ParameterError` with the range, if `value` is outside."""
        if not self.minimum <= value <= self.maximum:
            raise ParameterError(
                f"{name} is {value:g}; this bundle takes {self.minimum:g} to {self.maximum:g}: "
                f"use {self.default:g}"
            )


@dataclass(frozen=True)
class LimitsRecord:
    """What `height`, `width` (pixels) and `num_frames` may be."""

    height: LimitRecord
    width: LimitRecord
    num_frames: LimitRecord


@dataclass(frozen=True)
class DefaultsRecord:
    """What a generation uses where the caller says nothing.

    Attributes:
        min_guidance_scale: If there is one, guidance rises evenly over the frames of a clip, from
            this to guidance_scale.
        guidance_passes: "separate" or "batched", whichever was measured to be faster; see
            `VideoPipeline.generate`.
    """

    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    num_frames: int
    frame_rate: float
    negative_prompt: str = ""
    min_guidance_scale: float | None = None
    guidance_passes: str = "separate"


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself.

    Attributes:
        components: In the order in which they run: what encodes the conditions, then the denoiser,
            then the decoders.
        tokenizers: By the source that their ids are; none if the bundle takes no prompt.
        schedules: For each scheduler, by the short name that people type ("ddim"), the path of the
            table for each number of steps.
        guidance: Whether the denoiser follows classifier-free guidance (a second pass with the
            negative prompt).
        images: How the user's image is prepared, by the source that it becomes; none if the bundle
            takes no image.
        conditions: The numbers that the user may set, by name.
        force_zeros_for_empty_prompt: Without a negative prompt, the unconditional pass gets zeros
            in place of the encoding of an empty text.
        prompts: The path of a safetensors file with what the text encoders made of some prompts
            (docs/bundle.md), for devices without them; None if there are none.
    """

    name: str
    family: str
    components: dict[str, ComponentRecord]
    tokenizers: dict[str, TokenizerRecord]
    latents: LatentsRecord
    limits: LimitsRecord
    defaults: DefaultsRecord
    schedules: dict[str, dict[str, str]]
    files: dict[str, FileRecord]
    guidance: bool = True
    images: dict[str, ImageRecord] = field(default_factory=dict)
    conditions: dict[str, ConditionRecord] = field(default_factory=dict)
    force_zeros_for_empty_prompt: bool = False
    prompts: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Return the manifest in the file at `path`, checked.

        Raises:
            BundleError: It is absent, not JSON, from a later format, or inconsistent.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise BundleError(
                f"{path.parent} has no {MANIFEST_NAME}, so it is not a bundle: "
                "make one with mutoscope export CHECKPOINT -o BUNDLE"
            ) from err
        except OSError as err:
            raise BundleError(f"{path} cannot be read: {err.strerror}") from err
        except (ValueError, RecursionError) as err:
            raise BundleError(f"{path} is not valid JSON (damaged?): export again") from err
        return cls.from_json(value)

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Return the manifest made from a parsed JSON value; raises `BundleError`."""
        version = value.get("format_version") if isinstance(value, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise BundleError(f"{MANIFEST_NAME} has no format_version: export again")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has format_version {version}; this mutoscope reads up to "
                f"{FORMAT_VERSION}: pip install --upgrade mutoscope"
            )
        manifest = read_record(cls, value, MANIFEST_NAME)
        manifest._check_references()
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object, format_version first."""
        value = write_record(self)
        return {"format_version": value.pop("format_version"), **value}

    def _check_references(self) -> None:
        for path in self.files:
            check_relative_path(path)
        for path in self._referenced_paths():
            check_relative_path(path)
            if path not in self.files:
                raise BundleError(f"{MANIFEST_NAME} names {path} but does not list it under files")
        for name, component in self.components.items():
            if component.default_variant not in component.variants:
                raise BundleError(
                    f"{MANIFEST_NAME}: components: {name} has no variant "
                    f"{component.default_variant!r}"
                )
            for variant in component.cpu_graphs:
                if variant not in component.variants:
                    raise BundleError(
                        f"{MANIFEST_NAME}: components: {name} has a CPU graph of {variant!r}, "
                        "which is not among its variants"
                    )
            self._check_weights(name, component)
        self._check_sources()
        for scheduler, tables in self.schedules.items():
            for count in tables:
                if not (count.isascii() and count.isdigit() and int(count) > 0):
                    raise BundleError(
                        f"{MANIFEST_NAME}: schedules: {scheduler}: {count!r} must be a number of "
                        "steps"
                    )
        if self.defaults.scheduler not in self.schedules:
            raise BundleError(
                f"{MANIFEST_NAME}: defaults: scheduler {self.defaults.scheduler!r} has no schedules"
            )

    def _check_weights(self, name: str, component: ComponentRecord) -> None:
        """What reads another component's weights needs a graph there for each of its own."""
        if component.weights_of is None:
            return
        owner = self.components.get(component.weights_of)
        if owner is None or owner.weights_of is not None:
            raise BundleError(
                f"{MANIFEST_NAME}: components: {name} has the weights of {component.weights_of!r}, "
                "which is no component with weights of its own"
            )
        for variant in (*component.variants, *component.cpu_graphs):
            if variant not in owner.variants:
                raise BundleError(
                    f"{MANIFEST_NAME}: components: {name} has a variant {variant!r}, which "
                    f"{component.weights_of}, whose weights it has, lacks"
                )

    def _check_sources(self) -> None:
        """Every input has a source that is known when its component runs."""
        known = [*SOURCES, *self.tokenizers, *self.images, *self.conditions]
        for name, component in self.components.items():
            for input_name, tensor in component.inputs.items():
                if tensor.source not in known:
                    raise BundleError(
                        f"{MANIFEST_NAME}: {name} takes {input_name} from {tensor.source!r}, which "
                        f"this mutoscope does not know (known: {', '.join(known)}): "
                        "pip install --upgrade mutoscope"
                    )
                if tensor.unconditional not in (None, ZEROS):
                    raise BundleError(
                        f"{MANIFEST_NAME}: {name}: {input_name}: unconditional is "
                        f"{tensor.unconditional!r}, which this mutoscope does not know (known: "
                        f"{ZEROS}): pip install --upgrade mutoscope"
                    )
            if is_denoiser(name):
                # What it returns beside the model output is for other denoisers.
                known += list(component.outputs)[1:]
            elif name not in DECODERS:
                known += component.outputs

    def _referenced_paths(self) -> list[str]:
        paths = [tokenizer.file for tokenizer in self.tokenizers.values()]
        for component in self.components.values():
            paths += [*component.variants.values(), *component.cpu_graphs.values()]
            if component.decoder is not None and component.decoder.tiles is not None:
                tiles = component.decoder.tiles
                paths += [tiles.head, *(stage.graph for stage in tiles.stages)]
        for tables in self.schedules.values():
            paths.extend(tables.values())
        if self.prompts is not None:
            paths.append(self.prompts)
        return paths


def is_denoiser(name: str) -> bool:
    """Whether a component of this name makes model outputs for the sampler."""
    return name.startswith(DENOISERS)


def check_relative_path(path: str) -> None:
    """Raise `BundleError` unless `path` is a plain relative POSIX path inside the bundle."""
    parts = PurePosixPath(path).parts
    inside = (
        parts
        and not PurePosixPath(path).is_absolute()
        and not PureWindowsPath(path).anchor
        and ".." not in parts
        and "\\" not in path
        and "\0" not in path
    )
    if not inside:
        raise BundleError(f"{MANIFEST_NAME} names {path!r}, which is not inside the bundle")
