"""Text encoders as components: token ids become what the denoiser attends to."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTextModel

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.components.loading import load_component
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport, TokenizerSource
from mutoscope.export.loras.files import read_weight_shapes
from mutoscope.runtime.manifest import TensorRecord


class TextEncoder(torch.nn.Module):
    """input_ids int64 [B, S] -> prompt_embeds [B, S, D], as encode_prompt of the pipelines.

    With a `clip_skip`, the layers that it counts from the end are left out, and the final norm
    follows what is left.
    """

    def __init__(self, text_encoder: Any, clip_skip: int | None = None) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.text_encoder = text_encoder
        self.clip_skip = clip_skip

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states after the final norm."""
        if self.clip_skip is None:
            embeds: torch.Tensor = self.text_encoder(input_ids, attention_mask=None)[0]
            return embeds.float()
        states = self.text_encoder(input_ids, attention_mask=None, output_hidden_states=True)
        kept = states.hidden_states[-(self.clip_skip + 1)]
        # transformers 5 has no inner text_model any more.
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        normed: torch.Tensor = inner.final_layer_norm(kept)
        return normed.float()


def make_text_encoder(checkpoint: Checkpoint, *, clip_skip: int | None = None) -> ComponentExport:
    """Return the CLIP text encoder, its weights loaded; raises `CheckpointError`.

    Args:
        checkpoint: Has a text_encoder and a tokenizer.
        clip_skip: Layers to leave out at the end, as diffusers counts them; None leaves out none
            and takes the model's own last state.
    """
    model = load_component(checkpoint, "text_encoder", CLIPTextModel)
    max_length, features = find_tokenizer(checkpoint).max_length, model.config.hidden_size
    return ComponentExport(
        name="text_encoder",
        module=TextEncoder(model, clip_skip),
        inputs={"input_ids": TensorRecord("int64", ("batch", max_length), "input_ids")},
        outputs={"prompt_embeds": TensorRecord("float32", ("batch", max_length, features))},
        trace_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 3}),
        vocabulary_size=model.config.vocab_size,
    )


def find_tokenizer(
    checkpoint: Checkpoint, tokenizer: str = "tokenizer", text_encoder: str = "text_encoder"
) -> TokenizerSource:
    """Return a tokenizer of the checkpoint, and how many ids its prompt has.

    The pipeline pads to the tokenizer's length, which may be less than the model could take.

    Raises:
        CheckpointError: The checkpoint lacks it.
    """
    positions: int = checkpoint.load_config(text_encoder)["max_position_embeddings"]
    config = checkpoint.load_config(tokenizer, "tokenizer_config.json")
    return TokenizerSource(
        folder=checkpoint.component_folder(tokenizer),
        class_name=checkpoint.component_classes[tokenizer],
        max_length=min(positions, int(config.get("model_max_length") or positions)),
    )


def check_text_encoder(checkpoint: Checkpoint, text_encoder: str = "text_encoder") -> None:
    """Raise `CheckpointError` for a text encoder that takes more than ids."""
    if checkpoint.load_config(text_encoder).get("use_attention_mask"):
        raise CheckpointError(
            f"{checkpoint.name} cannot be exported: its {text_encoder} needs an attention mask"
        )


def read_text_shapes(
    checkpoint: Checkpoint, text_encoder: str = "text_encoder"
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a text encoder; none is read."""
    return read_weight_shapes(checkpoint.component_folder(text_encoder))
