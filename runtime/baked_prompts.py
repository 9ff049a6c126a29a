"""What the text encoders of a bundle made of some prompts when it was exported.

A device that has only these to say needs no text encoder. docs/bundle.md has the file's format.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import BundleError, ParameterError
from mutoscope.runtime.manifest import PROMPT_EMBEDS, Manifest, TensorRecord, is_denoiser
from mutoscope.runtime.safetensors_file import F32, SafetensorsFile

PROMPTS_PATH = "prompts/prompts.safetensors"
TEXTS, FORMAT = "texts", "format"
FORMAT_NAME = "mutoscope-prompts-1"

_NAMED_TEXTS = 3
_SHORT_TEXT = "a"


class BakedPrompts:
    """The texts that a bundle carries the encodings of; those are read one at a time."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        """Read which texts there are.

        Args:
            bundle: The bundle.
            name: The file, as its manifest names it.

        Raises:
            BundleError: The file is damaged, or is not for the bundle's denoisers.
        """
        self._name = name
        self._file = SafetensorsFile(bundle.load_file(name), name)
        self.texts = self._read_texts()
        self._indices = {text: index for index, text in enumerate(self.texts)}
        for output, shape in self._file.shapes.items():
            if len(shape) < 2 or shape[0] != len(self.texts):
                raise BundleError(
                    f"{name}: {output!r} is float32{list(shape)}; it must have a row for each of "
                    f"{len(self.texts)} texts: export again"
                )
        for tensor in _list_prompt_inputs(bundle.manifest):
            self._check_input(tensor)

    @property
    def outputs(self) -> Collection[str]:
        """The outputs of the text encoders that there are, by their names."""
        return self._file.shapes.keys()

    @property
    def num_tokens(self) -> int:
        """The length of `prompt_embeds`, 1 if there are none."""
        return self._file.shapes.get(PROMPT_EMBEDS[0], (0, 1))[1]

    def __contains__(self, text: str) -> bool:
        """Whether a text is there, to the letter."""
        return text in self._indices

    def read(self, text: str) -> dict[str, F32]:
        """Return the outputs of the text encoders for a text that is there, float32 [1, ...]."""
        index = self._indices[text]
        return {output: self._file.read_row(output, index) for output in self.outputs}

    def check(self, text: str) -> None:
        """Raise `ParameterError` with some texts that are there, if this one is not."""
        if text not in self:
            plural = "s" if len(self.texts) > 1 else ""
            known = ", ".join(repr(text) for text in self.texts[:_NAMED_TEXTS])
            one_of = "one of " if len(self.texts) > 1 else ""
            raise ParameterError(
                f"this bundle has no text encoder, and its {len(self.texts)} baked prompt{plural} "
                f"do{'' if plural else 'es'} not have {text!r}: use {one_of}{known}"
            )

    def _read_texts(self) -> tuple[str, ...]:
        known = self._file.metadata.get(FORMAT)
        if known != FORMAT_NAME:
            raise BundleError(
                f"{self._name} is of the format {known!r}; this mutoscope reads {FORMAT_NAME!r}: "
                "pip install --upgrade mutoscope"
            )
        try:
            texts = json.loads(self._file.metadata.get(TEXTS, ""))
        except (ValueError, RecursionError):
            texts = None
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) for text in texts)
            or len(set(texts)) != len(texts)
        ):
            raise BundleError(
                f"{self._name} does not list its texts, each once (damaged?): copy or export it "
                "again"
            )
        return tuple(texts)

    def _check_input(self, tensor: TensorRecord) -> None:
        """Raise `BundleError` unless the file has what an input of a denoiser takes."""
        source, wanted = str(tensor.source), tensor.shape[1:]
        shape = self._file.shapes.get(source, ())[1:]
        if len(shape) != len(wanted) or any(
            isinstance(length, int) and length != found
            for length, found in zip(wanted, shape, strict=True)
        ):
            rows = f"rows of {list(shape)}" if shape else "none"
            rule = ", ".join(str(length) for length in wanted)
            raise BundleError(
                f"{self._name} has {rows} for {source}; this bundle's denoiser takes [{rule}]: "
                "export again"
            )


def choose_text(bundle: Bundle) -> str | None:
    """Return a text that a bundle takes, for trials; None if it takes none.

    Raises:
        BundleError: The file of its baked prompts is damaged.
    """
    if bundle.manifest.tokenizers:
        return _SHORT_TEXT
    baked = load_baked_prompts(bundle)
    return None if baked is None else baked.texts[0]


def load_baked_prompts(bundle: Bundle) -> BakedPrompts | None:
    """Return the baked prompts of a bundle, None if it has none; raises `BundleError`."""
    name = bundle.manifest.prompts
    return None if name is None else BakedPrompts(bundle, name)


def _list_prompt_inputs(manifest: Manifest) -> list[TensorRecord]:
    """What the denoisers take of a prompt."""
    return [
        tensor
        for name, component in manifest.components.items()
        if is_denoiser(name)
        for tensor in component.inputs.values()
        if tensor.source in PROMPT_EMBEDS
    ]
