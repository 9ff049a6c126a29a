"""Trains the text encoder: a two-layer CLIPTextModel whose states tell a caption's attributes.

Linear heads read colour, shape, motion, background and pillar from the encoder's states; the heads
are dropped afterwards, and the UNet is trained on the frozen encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, draw_attributes, draw_caption
from training.loop import TrainingPlan, load_average, load_state, make_state, train
from training.tokenizer import MAX_LENGTH, make_tokenizer

WIDTH: Final = 128
"""Features of a text state; the UNet's cross_attention_dim."""
BATCH: Final = 128
POOL_CAPTIONS: Final = 20_000
EMPTY_FRACTION: Final = 0.05
STATE_NAME: Final = "text_encoder.pt"
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
    "pillar": ("pillar",),
}
"""What the heads read: the values of each field; one more class means that it is not named."""
FILLERS: Final = (
    "please show", "a video of", "a clip of", "animation of", "draw", "here", "now", "Look:",
    "in this clip", "small test,", "4 k", "simple", "very nice", "high quality", "2d", "film of",
)  # fmt: skip


class AttributeReader(nn.Module):
    """The text encoder with a linear head for each field."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        """Put untrained heads on the encoder, which it owns from now on."""
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(v) + 1) for v in FIELDS.values())

    def forward(self, input_ids: Tensor, position: Tensor) -> list[list[Tensor]]:
        """Return logits of each field, read from three states: the end's, the mean, the last ones.

        Args:
            input_ids: Token ids, int64 [B, S].
            position: A position among the padding for each caption, int64 [B].
        """
        output = self.encoder(input_ids)
        states = output.last_hidden_state  # [B, S, D]
        rows = torch.arange(len(states))
        views = (output.pooler_output, states.mean(dim=1), states[rows, position])
        return [[head(view) for view in views] for head in self.heads]


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder, 0.5 M parameters."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token ids, int64 [B, S], padded and truncated as the pipeline does it."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_LENGTH)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64)


def find_labels(caption: str) -> list[int]:
    """Return the class of each field in a caption: the index of its value, or the last class."""
    text = f" {caption.lower()} ".replace(",", " ")
    labels = []
    for values in FIELDS.values():
        named = [index for index, value in enumerate(values) if f" {value} " in text]
        labels.append(named[0] if named else len(values))
    return labels


def draw_text(rng: np.random.Generator, caption: str) -> str:
    """Return the caption, sometimes with fillers around it or with the background first."""
    choice = rng.random()
    if choice < EMPTY_FRACTION:
        return ""
    if choice < 0.4:
        caption = f"{FILLERS[rng.integers(len(FILLERS))]} {caption}"
    if rng.random() < 0.1:
        caption = f"{caption}, {FILLERS[rng.integers(len(FILLERS))]}"
    if rng.random() < 0.1 and " on a " in caption:
        first, last = caption.split(" on a ", 1)
        caption = f"on a {last}, {first}"
    return caption


def train_text_encoder(state_dir: Path, minutes: float) -> None:
    """Train the text encoder on captions and leave its state in `state_dir`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    tokenizer = make_tokenizer()
    captions = [
        draw_text(rng, draw_caption(rng, attributes, still=bool(rng.random() < 0.2)))
        for attributes in draw_attributes(rng, POOL_CAPTIONS)
    ]
    input_ids = tokenize(tokenizer, captions)
    labels = torch.tensor([find_labels(caption) for caption in captions])
    first_padding = (input_ids == tokenizer.eos_token_id).int().argmax(dim=1)

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        chosen = torch.randint(
            len(captions), (BATCH,), generator=torch.Generator().manual_seed(step)
        )
        spread = torch.rand(BATCH, generator=torch.Generator().manual_seed(step + 1))
        start = first_padding[chosen]
        position = start + (spread * (MAX_LENGTH - start)).long()
        fields = model(input_ids[chosen], position)
        losses = [
            nn.functional.cross_entropy(logits.float(), labels[chosen, field])
            for field, views in enumerate(fields)
            for logits in views
        ]
        return torch.stack(losses).mean()

    plan = TrainingPlan(minutes=minutes, learning_rate=1.5e-3, average_decay=0.98)
    state = make_state(AttributeReader(make_text_encoder(tokenizer)), plan)
    path = state_dir / STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)


def load_text_encoder(state_dir: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Return the tokenizer and the trained text encoder, float32, in evaluation mode."""
    tokenizer = make_tokenizer()
    reader = AttributeReader(make_text_encoder(tokenizer))
    load_average(reader, state_dir / STATE_NAME)
    return tokenizer, reader.encoder.eval()
