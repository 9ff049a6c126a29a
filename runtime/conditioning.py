"""What a denoiser is told beside the latents: prompts, images and numbers, encoded.

The manifest says which components encode what; they run in its order, and each finds the outputs of
the ones before it by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mutoscope.engines.engine import Array
from mutoscope.runtime.baked_prompts import BakedPrompts, load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import Components
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import (
    DECODERS,
    NOISE,
    PROMPT_EMBEDS,
    ZEROS,
    ComponentRecord,
    Manifest,
    is_denoiser,
)
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.prompt_cache import PromptCache, make_key
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.settings import Settings
from mutoscope.runtime.timings import Timings
from mutoscope.runtime.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from mutoscope.runtime.images import ImageInput

Values = dict[str, Array]


@dataclass(frozen=True)
class PromptInput:
    """One side of guidance: a text, or what the text encoder would make of it.

    Attributes:
        name: What messages call it: "prompt" or "negative_prompt".
        text: None if there are `embeds`, or if the encoders' outputs are to be zeros.
        embeds: Outputs of the text encoder by name, float32.
    """

    name: str
    text: str | None = None
    embeds: dict[str, F32] = field(default_factory=dict)


class ConditionEncoder:
    """Runs the components of a bundle that encode conditions.

    What text encoders made of a prompt is kept, whether they stay in memory or not.
    """

    def __init__(self, bundle: Bundle, components: Components) -> None:
        """Prepare; nothing is loaded yet."""
        self._bundle = bundle
        self._components = components
        self._tokenizers: dict[str, TextTokenizer] = {}
        self._cache = PromptCache()
        manifest = bundle.manifest
        self._encoders = {
            name: record
            for name, record in manifest.components.items()
            if not is_denoiser(name) and name not in DECODERS
        }
        self._prompt_sources = set(manifest.tokenizers)
        for record in self._encoders.values():
            if self._depends_on_prompt(record):
                self._prompt_sources |= set(record.outputs)

    @property
    def takes_prompt(self) -> bool:
        """Whether the bundle makes videos of a text."""
        return bool(self.prompt_embeds)

    @property
    def text_encoders(self) -> dict[str, ComponentRecord]:
        """The components that take a prompt, by their names in the bundle."""
        encoders = self._encoders.items()
        return {name: record for name, record in encoders if self._depends_on_prompt(record)}

    @property
    def baked_texts(self) -> tuple[str, ...]:
        """The texts that need no text encoder; raises `BundleError`."""
        return () if self._baked is None else self._baked.texts

    @cached_property
    def _baked(self) -> BakedPrompts | None:
        """The bundle's baked prompts, with all that its components make of a text."""
        baked = load_baked_prompts(self._bundle)
        if baked is not None:
            for record in self.text_encoders.values():
                for output in record.outputs.keys() - baked.outputs:
                    raise BundleError(
                        f"{self._bundle.manifest.prompts} has no {output}, which a text encoder of "
                        "this bundle makes: export again"
                    )
        return baked

    @property
    def _has_text_encoder(self) -> bool:
        made = {output for record in self._encoders.values() for output in record.outputs}
        return made >= set(self.prompt_embeds)

    @property
    def prompt_embeds(self) -> dict[str, str]:
        """What the denoiser takes of a prompt, with its feature length as text ("D" if unknown)."""
        denoiser = self._bundle.find_component(self._components.denoiser)
        return {
            tensor.source: str(tensor.shape[-1]) if isinstance(tensor.shape[-1], int) else "D"
            for tensor in denoiser.inputs.values()
            if tensor.source in (*PROMPT_EMBEDS, *self._prompt_sources)
        }

    def make_prompt(
        self, name: str, text: str | None, embeds: F32 | Mapping[str, F32] | None
    ) -> PromptInput:
        """Return a prompt, checked; raises `ParameterError`.

        Args:
            name: "prompt" or "negative_prompt".
            text: Any text.
            embeds: float32 [1, S, D] if the text encoder has one output, else a mapping of all.
        """
        if text is not None and embeds is not None:
            raise ParameterError(f"{name} and {name}_embeds are both given: leave one out")
        if not self.takes_prompt and (text is not None or embeds is not None):
            raise ParameterError(
                f"{name} is given, but this bundle makes a video of an image alone: leave it out"
            )
        if text is not None and not isinstance(text, str):
            raise ParameterError(f"{name} is a {type(text).__name__}; it must be a string")
        if text is not None and not self._has_text_encoder:
            if self._baked is None:
                raise ParameterError(
                    f"{name} is a text, but this bundle has no text encoder: give {name}_embeds"
                )
            self._baked.check(text)
        if embeds is None:
            return PromptInput(name, text)
        return PromptInput(name, None, self._check_embeds(f"{name}_embeds", embeds))

    def encode(
        self,
        prompts: list[PromptInput],
        values: Values,
        generator: NoiseGenerator,
        timings: Timings,
    ) -> list[Values]:
        """Return all that the denoiser may take, by source, for each pass of guidance.

        Args:
            prompts: The prompt and, with guidance, the negative prompt, by whose side the inputs
                that the manifest calls unconditional become zeros.
            values: What is known already, by source: images, conditions, sizes.
            generator: The noise of the encoders is drawn from it, in their order.
            timings: Where the time is added.
        """
        passes = [self._start_pass(prompt, values, timings) for prompt in prompts]
        for name, record in self._encoders.items():
            if self._depends_on_prompt(record):
                self._encode_prompts(name, record, prompts, passes, timings)
            else:
                noise = self._draw_noise(record, values, generator)
                outputs = self._components.run_all(name, timings, {**values, **noise})
                for known in (values, *passes):
                    known.update(outputs)
            self._components.release(name)
        for unconditional in passes[1:]:
            # A prompt without a text is zeros. What was not given of the first prompt either is not
            # there; whatever takes it says so.
            missing = set(self.prompt_embeds) & set(passes[0]) - set(unconditional)
            unconditional |= {source: np.zeros_like(passes[0][source]) for source in missing}
            self._zero_unconditional(unconditional)
        return passes

    def encode_text(self, text: str, timings: Timings) -> dict[str, F32]:
        """Return what the text encoders make of a text, by the names of their outputs.

        Raises:
            EngineError: A text encoder takes more than the text.
            ParameterError: The text has more tokens than they take.
        """
        prompt = PromptInput("prompt", text)
        known = self._start_pass(prompt, {}, timings)
        for name, record in self.text_encoders.items():
            self._encode_prompts(name, record, [prompt], [known], timings)
        return {
            output: known[output]
            for record in self.text_encoders.values()
            for output in record.outputs
        }

    def _start_pass(self, prompt: PromptInput, values: Values, timings: Timings) -> Values:
        """What is known before any encoder runs."""
        known: Values = {**values, **prompt.embeds}
        if prompt.text is None:
            return known
        if self._baked is not None and prompt.text in self._baked:
            with timings.measure("seconds_load"):
                known |= self._baked.read(prompt.text)
        else:
            for source in self._bundle.manifest.tokenizers:
                tokenizer = self._load_tokenizer(source, timings)
                known[source] = tokenizer.encode(prompt.name, prompt.text)
        return known

    def _encode_prompts(
        self,
        name: str,
        record: ComponentRecord,
        prompts: list[PromptInput],
        passes: list[Values],
        timings: Timings,
    ) -> None:
        """Run a text encoder for each pass that has not its outputs already."""
        for prompt, known in zip(prompts, passes, strict=True):
            if prompt.text is not None and not set(record.outputs) <= set(known):
                known.update(self._run_text_encoder(name, timings, known))

    def _run_text_encoder(self, name: str, timings: Timings, known: Values) -> Values:
        """What a text encoder makes of a prompt, or made of it before."""
        feeds = self._components.make_feeds(name, known)
        if self._components.is_replaced(name):
            # What it makes is its own, and it may be there to see what it is fed.
            return self._components.run_feeds(name, timings, feeds)
        key = make_key(name, feeds)
        outputs = self._cache.find(key)
        if outputs is None:
            outputs = self._components.run_feeds(name, timings, feeds)
            self._cache.add(key, outputs)
        return outputs

    def _zero_unconditional(self, values: Values) -> None:
        denoiser = self._bundle.find_component(self._components.denoiser)
        for tensor in denoiser.inputs.values():
            if tensor.unconditional == ZEROS and tensor.source in values:
                values[tensor.source] = np.zeros_like(values[tensor.source])

    def _draw_noise(
        self, record: ComponentRecord, values: Values, generator: NoiseGenerator
    ) -> Values:
        """Noise for an encoder that takes some; its shape follows from the other inputs."""
        wanted = [tensor for tensor in record.inputs.values() if tensor.source == NOISE]
        if not wanted:
            return {}
        lengths: dict[int | str, int] = {}
        for tensor in record.inputs.values():
            value = values.get(tensor.source or "")
            if value is not None and value.ndim == len(tensor.shape):  # numbers have no axes yet
                lengths.update(zip(tensor.shape, value.shape, strict=True))
        (tensor,) = wanted
        shape = tuple(lengths[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        return {NOISE: generator.normal(shape)}

    def _depends_on_prompt(self, record: ComponentRecord) -> bool:
        return any(tensor.source in self._prompt_sources for tensor in record.inputs.values())

    def _check_embeds(self, name: str, embeds: F32 | Mapping[str, F32]) -> dict[str, F32]:
        outputs, main = self.prompt_embeds, PROMPT_EMBEDS[0]
        given = dict(embeds) if isinstance(embeds, Mapping) else {main: embeds}
        if set(given) != set(outputs):
            raise ParameterError(
                f"{name} has {', '.join(given)}; this bundle's denoiser takes "
                f"{', '.join(outputs)}: give a mapping with all of them"
            )
        for output, array in given.items():
            features = outputs[output]
            is_main = output == main
            shape = ("1", "S", features) if is_main else ("1", features)
            check_array(name if is_main else f"{name}[{output!r}]", array, shape)
        return given

    def _load_tokenizer(self, source: str, timings: Timings) -> TextTokenizer:
        if source not in self._tokenizers:
            with timings.measure("seconds_load"):
                record = self._bundle.manifest.tokenizers[source]
                path = self._bundle.load_file(record.file)
                self._tokenizers[source] = TextTokenizer(path, record)
        return self._tokenizers[source]


def check_array(name: str, array: F32, shape: tuple[str, ...]) -> None:
    """Raise `ParameterError` unless an array is float32, finite and of this shape.

    Args:
        name: What the message calls it.
        array: What the caller gave.
        shape: For each axis its length, or a letter if it may have any.
    """
    rule = f"float32 [{', '.join(shape)}]"
    if not isinstance(array, np.ndarray):
        raise ParameterError(f"{name} is a {type(array).__name__}; it must be a numpy {rule}")
    fits = array.ndim == len(shape) and all(
        not wanted.isdigit() or int(wanted) == length
        for wanted, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.float32 or not fits:
        raise ParameterError(f"{name} is {array.dtype}{list(array.shape)}; it must be {rule}")
    if not np.isfinite(array).all():
        raise ParameterError(f"{name} has values that are not finite")


def make_values(manifest: Manifest, settings: Settings, image: ImageInput | None) -> Values:
    """Return what is known before any component runs, by source.

    Args:
        manifest: The bundle's.
        settings: Sizes and conditions.
        image: The user's image, for a bundle that takes one.

    Raises:
        ParameterError: There is an image where none is taken, or none where one is.
    """
    sizes = {
        "num_frames": settings.num_frames,
        "height": settings.height,
        "width": settings.width,
        "frame_rate": settings.frame_rate,
    }
    values: Values = {
        name: np.asarray(number, dtype=np.float64)
        for name, number in {**sizes, **settings.conditions}.items()
    }
    records = manifest.images
    if image is not None and not records:
        raise ParameterError(
            "image is given, but this bundle makes a video of a prompt alone: leave it out"
        )
    if image is None and records:
        raise ParameterError(
            "image is missing: this bundle makes a video of an image, give the path of one"
        )
    if image is not None:
        from mutoscope.runtime.images import load_image, prepare_image

        picture = load_image(image)
        for source, record in records.items():
            values[source] = prepare_image(
                picture, record, height=settings.height, width=settings.width
            )
    return values
