"""What calibration samples from: prompts, images, seeds, guidance; and how clips are made of them.

The float model is sampled as its users will run it, since the values inside a denoiser depend on
the noise level, on the prompt and on what earlier steps made of both.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.sampled_schedule import find_whole_scheduler
from mutoscope.runtime.baked_prompts import BakedPrompts, load_baked_prompts
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.row_plan import plan_rows
from mutoscope.runtime.sampler import OnStep
from mutoscope.runtime.schedule import ScheduleTable
from mutoscope.runtime.settings import SEED_MAX, Settings, make_settings
from mutoscope.runtime.tokenizer import TextTokenizer
from mutoscope.runtime.video import Video

# What is taken for right: what others are made of and compared with.
FLOAT = "float32"
# In a bundle: the prompts of its checkpoint. Those for all other bundles lie beside this file.
PROMPTS_PATH = "calibration/prompts.txt"
BUILT_IN_PROMPTS = Path(__file__).with_name("prompts.txt")

# Users turn guidance off too, and then the denoiser sees latents that it made without it.
_SAMPLES_PER_UNGUIDED = 4
_COMMENT = "#"


@dataclass(frozen=True)
class CalibrationSample:
    """One clip of the float model that calibration looks at.

    Attributes:
        prompt: None if the bundle takes none.
        seed: Of its noise.
        image: What the clip starts from; None if the bundle takes none.
        guidance_scale: 1 is off.
    """

    prompt: str | None
    seed: int
    image: Path | None
    guidance_scale: float

    def describe(self) -> str:
        """Return the sample in words, for messages: `prompt 'a red circle', seed 7`."""
        named = {"prompt": self.prompt and repr(self.prompt), "image": self.image}
        known = [f"{name} {value}" for name, value in named.items() if value is not None]
        return ", ".join([*known, f"seed {self.seed}, guidance_scale {self.guidance_scale:g}"])

    def identify(self) -> dict[str, Any]:
        """Return the sample as JSON can hold it, its image by what is in the file."""
        image = self.image and hashlib.sha256(self.image.read_bytes()).hexdigest()
        return {**asdict(self), "image": image}


@dataclass(frozen=True)
class SamplingOptions:
    """How all samples are made; None takes the bundle's default.

    Attributes:
        num_inference_steps: A number of steps that the bundle has a table for; all are sampled.
            None takes what a generation with this scheduler takes.
        scheduler: A scheduler of the bundle. Where rows of the default one reuse features, None
            takes the first that runs the same denoiser whole in all rows.
        num_frames: Frames.
        height: Pixels.
        width: Pixels.
    """

    num_inference_steps: int | None = None
    scheduler: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None

    def make_arguments(self, bundle: Bundle) -> dict[str, Any]:
        """Return these options as arguments of a generation; raises `ParameterError`."""
        scheduler = self.scheduler or find_whole_scheduler(bundle, self.num_inference_steps)
        return {**asdict(self), "scheduler": scheduler}

    def make_settings(self, bundle: Bundle) -> Settings:
        """Return the settings that all samples have; raises `ParameterError`."""
        return make_settings(bundle, seed=0, **self.make_arguments(bundle))

    def resolve(self, bundle: Bundle, sample: CalibrationSample) -> Settings:
        """Return the settings of a sample; raises `ParameterError`."""
        arguments = self.make_arguments(bundle)
        return make_settings(
            bundle, seed=sample.seed, guidance_scale=sample.guidance_scale, **arguments
        )

    def load_table(self, bundle: Bundle) -> ScheduleTable:
        """Return the schedule table of all samples.

        Raises:
            BundleError: The file is damaged.
            ParameterError: An option is not allowed.
            ScheduleError: It is not a valid table.
        """
        settings = self.make_settings(bundle)
        return bundle.load_schedule(settings.scheduler, settings.num_inference_steps)

    def find_denoiser(self, bundle: Bundle) -> str:
        """Return what denoises the samples, where rows name no other; raises as `load_table`."""
        plan = plan_rows(bundle.manifest, self.load_table(bundle))
        return plan.default if plan.default in plan.uses else next(iter(plan.uses))


def find_float_graph(bundle: Bundle, component_name: str) -> str:
    """Return the path in a bundle of a component's plain float32 graph.

    Raises:
        CalibrationError: It has none.
    """
    component = bundle.find_component(component_name)
    if FLOAT not in component.variants:
        raise CalibrationError(
            f"{component_name} has no {FLOAT} graph (it has {', '.join(component.variants)}): "
            f"export the checkpoint again with --dtype {FLOAT}"
        )
    return component.variants[FLOAT]


def open_float_pipeline(bundle: Bundle, num_threads: int | None = None) -> VideoPipeline:
    """Return a pipeline of a bundle's float32 graphs, which runs on the CPU.

    Args:
        bundle: The bundle.
        num_threads: Threads for one operator; None takes one for each core.

    Raises:
        CalibrationError: A component has no float32 graph.
    """
    for name in bundle.manifest.components:
        find_float_graph(bundle, name)
    return VideoPipeline(bundle, variant=FLOAT, num_threads=num_threads)


def generate_sample(
    pipeline: VideoPipeline,
    sample: CalibrationSample,
    options: SamplingOptions,
    *,
    on_step: OnStep | None = None,
) -> Video:
    """Return the clip of a sample; raises as `VideoPipeline.generate` does."""
    return pipeline.generate(
        sample.prompt,
        image=sample.image,
        seed=sample.seed,
        guidance_scale=sample.guidance_scale,
        on_step=on_step,
        **options.make_arguments(pipeline.bundle),
    )


def read_prompts(
    path: Path, tokenizers: Sequence[TextTokenizer], baked: BakedPrompts | None = None
) -> list[str]:
    """Return the prompts of a text file, one on each line.

    Empty lines and lines that begin with # are passed over.

    Args:
        path: The file, UTF-8.
        tokenizers: Those that the prompts must fit, as `load_tokenizers` returns them.
        baked: What the prompts must be of, where there are no tokenizers.

    Raises:
        CalibrationError: The file cannot be read, has no prompt, or has one that cannot be used.
    """
    lines: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        prompt, where = line.strip(" \r"), f"{path}: line {number}"
        if prompt and not prompt.startswith(_COMMENT):
            _check_characters(where, prompt)
            lines[where] = prompt
    if not lines:
        raise CalibrationError(f"{path} has no prompts: write one on each line")
    _check_prompts(lines, tokenizers, baked)
    return list(lines.values())


def load_tokenizers(bundle: Bundle) -> list[TextTokenizer]:
    """Return the tokenizers of a bundle, none if it takes no prompt; raises `BundleError`."""
    records = bundle.manifest.tokenizers.values()
    return [TextTokenizer(bundle.load_file(record.file), record) for record in records]


def load_default_prompts(bundle: Bundle) -> list[str]:
    """Return the prompts to sample where the user names none: the bundle's own, or the built-in.

    A bundle without text encoders has its baked ones, and no other: the default negative prompt is
    left out, unless there is nothing else.

    Raises:
        BundleError: A file of the bundle's prompts is damaged.
        CalibrationError: The built-in prompts do not fit the bundle.
    """
    tokenizers = load_tokenizers(bundle)
    if not tokenizers:
        baked = load_baked_prompts(bundle)
        texts = [] if baked is None else list(baked.texts)
        return [text for text in texts if text != bundle.manifest.defaults.negative_prompt] or texts
    if PROMPTS_PATH in bundle.manifest.files:
        return read_prompts(bundle.load_file(PROMPTS_PATH), tokenizers)
    try:
        return read_prompts(BUILT_IN_PROMPTS, tokenizers)
    except CalibrationError as err:
        raise CalibrationError(
            "the built-in prompts do not fit this bundle, and it has none of its own: give some "
            f"with --prompts FILE ({err})"
        ) from err


def make_samples(
    bundle: Bundle,
    prompts: Sequence[str],
    images: Sequence[Path],
    num_samples: int,
    seed: int,
    sampling: SamplingOptions | None = None,
) -> tuple[CalibrationSample, ...]:
    """Return the samples of a calibration, the same ones for the same arguments.

    Prompts come in an order that the seed shuffles, and again with other noise where there are more
    samples than prompts. One in four has guidance off, if the schedule table takes guidance; else
    all have. The first samples of a larger number are those of a smaller one.

    Args:
        bundle: The bundle.
        prompts: As `load_default_prompts` or `read_prompts` returns them; empty for a bundle that
            takes none.
        images: What clips start from, in turn; empty for a bundle that takes none.
        num_samples: At least 1.
        seed: From 0 to 2^64 - 1.
        sampling: How the samples will be made; None takes the bundle's defaults.

    Raises:
        BundleError: A tokenizer, the baked prompts or the schedule table are damaged.
        CalibrationError: There are prompts or images where none are taken, or the reverse, one of
            them cannot be used, or a number is out of range.
        ParameterError: An option of the sampling is not allowed.
        ScheduleError: The schedule table is not valid.
    """
    if num_samples < 1:
        raise CalibrationError(f"num_samples is {num_samples}; it must be at least 1: use 64")
    if not 0 <= seed <= SEED_MAX:
        raise CalibrationError(f"seed is {seed}; it must be from 0 to {SEED_MAX}: use 0")
    _check_inputs(bundle, prompts, images)
    defaults, manifest = bundle.manifest.defaults, bundle.manifest
    is_guided = (
        manifest.guidance and (sampling or SamplingOptions()).load_table(bundle).takes_guidance
    )
    guidance_scale = defaults.guidance_scale if is_guided else 1.0
    order = np.random.default_rng(seed).permutation(len(prompts))
    samples = []
    for index in range(num_samples):
        # A generator for each, so that the number of samples changes none of them.
        own_seed = int(np.random.default_rng((seed, index)).integers(2**32))
        unguided = index % _SAMPLES_PER_UNGUIDED == _SAMPLES_PER_UNGUIDED - 1
        samples.append(
            CalibrationSample(
                prompt=prompts[order[index % len(prompts)]] if prompts else None,
                seed=own_seed,
                image=images[index % len(images)] if images else None,
                guidance_scale=1.0 if unguided else guidance_scale,
            )
        )
    return tuple(samples)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as err:
        raise CalibrationError(f"{path} does not exist: give a text file of prompts") from err
    except OSError as err:
        raise CalibrationError(f"{path} cannot be read: {err.strerror}") from err
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise CalibrationError(f"{path}: line {line} is not UTF-8: save the file as UTF-8") from err


def _check_characters(where: str, prompt: str) -> None:
    for character in prompt:
        if unicodedata.category(character) == "Cc":
            raise CalibrationError(
                f"{where} has the control character U+{ord(character):04X}; a prompt is plain text "
                "on one line: remove it"
            )


def _check_prompts(
    prompts: Mapping[str, str], tokenizers: Sequence[TextTokenizer], baked: BakedPrompts | None
) -> None:
    """Raise `CalibrationError` unless a bundle with these can take the prompts, which have names.

    What is baked counts where no text can be encoded.
    """
    for name, prompt in prompts.items():
        try:
            for tokenizer in tokenizers:
                tokenizer.encode(name, prompt)
            if not tokenizers and baked is not None:
                baked.check(prompt)
        except ParameterError as err:
            message = str(err) if tokenizers else f"{name}: {err}"
            raise CalibrationError(message) from err


def _check_inputs(bundle: Bundle, prompts: Sequence[str], images: Sequence[Path]) -> None:
    """Raise `CalibrationError` unless the bundle takes such prompts and images."""
    tokenizers, baked = load_tokenizers(bundle), load_baked_prompts(bundle)
    takes_prompts, takes_images = (
        bool(tokenizers) or baked is not None,
        bool(bundle.manifest.images),
    )
    if prompts and not takes_prompts:
        raise CalibrationError(
            "prompts are given, but this bundle makes videos of an image alone: leave --prompts out"
        )
    if takes_prompts and not prompts:
        raise CalibrationError("there are no prompts; this bundle makes videos of them: give one")
    named = {f"prompts[{index}]": prompt for index, prompt in enumerate(prompts)}
    _check_prompts(named, tokenizers, baked)
    if images and not takes_images:
        raise CalibrationError(
            "images are given, but this bundle makes videos of a prompt alone: leave --image out"
        )
    if takes_images and not images:
        raise CalibrationError(
            "this bundle makes videos of an image, and there is none: give some with --image FILE"
        )
    if images:
        from mutoscope.runtime.images import load_image

        for image in images:
            try:
                load_image(image)
            except ParameterError as err:
                raise CalibrationError(str(err)) from err
