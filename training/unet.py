"""Trains the denoiser: a UNetMotionModel, first on single frames, then on clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import DDIMScheduler, UNetMotionModel
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from training.clips import MOTIONS, NUM_FRAMES, draw_caption, list_training_attributes
from training.latents import LatentClips
from training.loop import TrainingPlan, load_average, load_state, make_state, train
from training.motion_start import attend_to_own_frame, list_motion_modules, write_motion_code
from training.text_encoder import WIDTH, load_text_encoder, tokenize

STILL_BATCH: Final = 128
CLIP_BATCH: Final = 16
STILL_FRACTION: Final = 0.08
"""Fraction of the clip stage's batches that are single frames, so that one-frame videos work."""
DROP_FRACTION: Final = 0.1
"""Fraction of samples with an empty caption, for classifier-free guidance."""
HIGH_NOISE_FRACTION: Final = 0.2
"""Fraction of samples from the noisiest tenth, where only text and frame number tell the path."""
TIMESTEP_POWER: Final = 0.75
"""Timesteps are u ** this: below 1, more of them at high noise, where the path is decided."""
OBJECT_WEIGHT: Final = 3.0
"""Weight of a cell with an object in it where noise is low; 1 where noise is all."""
LATE_MOTIONS: Final = {"grows": 0.075, "shrinks": 0.075}
"""Fractions of samples among these motions alone: a size is learned later than a direction."""
TRACK_WEIGHT: Final = 0.3
"""Weight of the error in telling place and size; it fades where noise is low."""
STEADY_WEIGHT: Final = 3.0
"""Weight of the background's change over time, of which the clips of the data have none."""
STEPS_BETWEEN_REFRESHES: Final = 50
STILL_STATE_NAME: Final = "unet_still.pt"
CLIP_STATE_NAME: Final = "unet_clip.pt"
FEW_STEP_STATE_NAME: Final = "unet_few_step.pt"


class ShortAttention:
    """Attention as plain matrix products: for S <= 64, faster to train on a CPU than the fused one.

    Text states may be given once per clip instead of once per frame.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the attended states, [N, S, D]; the mask is always None here."""
        del attention_mask, temb
        batch, length, features = hidden_states.shape
        heads: int = attn.heads  # type: ignore[assignment]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = len(context)

        def split_heads(states: Tensor) -> Tensor:
            states = states.view(rows, -1, heads, features // heads).transpose(1, 2)
            return states.reshape(rows * heads, -1, features // heads)

        query = split_heads(attn.to_q(hidden_states) * attn.scale)  # type: ignore[operator]
        key = split_heads(attn.to_k(context))  # type: ignore[operator]
        value = split_heads(attn.to_v(context))  # type: ignore[operator]
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1)
        output = torch.bmm(weights, value).view(rows, heads, -1, features // heads)
        output = output.transpose(1, 2).reshape(batch, length, features)
        projected: Tensor = attn.to_out[0](output)  # type: ignore[index,operator]
        return projected


def make_unet() -> UNetMotionModel:
    """Return an untrained denoiser, 6.0 M parameters, whose motion modules change nothing yet."""
    unet = UNetMotionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockMotion",) * 2,
        up_block_types=("CrossAttnUpBlockMotion",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=NUM_FRAMES,
        use_linear_projection=True,
    )
    for module in list_motion_modules(unet):
        nn.init.zeros_(module.proj_out.weight)  # type: ignore[arg-type,union-attr]
        nn.init.zeros_(module.proj_out.bias)  # type: ignore[arg-type,union-attr]
    return unet


def make_scheduler() -> DDIMScheduler:
    """Return the scheduler that both training and the checkpoint use."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def skip_motion(unet: UNetMotionModel) -> None:
    """Make the motion modules pass their input on, in place: single frames need no motion."""
    for module in list_motion_modules(unet):
        module.forward = lambda hidden_states, *args, **kwargs: hidden_states


class TrackedUNet(nn.Module):
    """The denoiser with a linear head that tells place and size of the shape from its middle.

    The head is dropped after training. Its loss teaches what path a caption means some ten times
    sooner than the velocity alone does, in which the path is a small part of the variance.
    """

    def __init__(self, unet: UNetMotionModel) -> None:
        """Put an untrained head on the denoiser, which it owns from now on."""
        super().__init__()
        self.unet = unet
        self.head = nn.Linear(unet.config["block_out_channels"][-1], 3)
        unet.mid_block.register_forward_hook(_keep_states)

    def forward(self, sample: Tensor, timesteps: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity [B, C, F, h, w] and the track [B, F, 3] (see `make_track`)."""
        velocity = self.unet(sample, timesteps, text, return_dict=False)[0]
        states = self.unet.mid_block.kept_states.mean(dim=(2, 3))  # [B * F, D]
        return velocity, self.head(states).view(len(sample), -1, 3)


def _keep_states(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Forward hook: leave the block's output on the block."""
    module.kept_states = output


def make_track(cells: Tensor) -> Tensor:
    """Return where the object is and how large, float32 [B, F, 3], each about -2 to 2.

    Args:
        cells: Which latent cells show the object, float32 [B, 1, F, h, w].
    """
    cells = cells[:, 0]
    place = torch.linspace(-2.0, 2.0, cells.shape[-1])
    count = cells.sum(dim=(2, 3)).clamp(min=1.0)
    x = (cells.sum(dim=2) * place).sum(dim=2) / count
    y = (cells.sum(dim=3) * place).sum(dim=2) / count
    return torch.stack([x, y, (count.sqrt() - 4.0) / 1.5], dim=2)


class CaptionedLatents:
    """Draws training batches: noised latents, text states, and what the denoiser should say."""

    def __init__(self, state_dir: Path) -> None:
        """Read the latents and the text encoder that `state_dir` holds."""
        self.clips = LatentClips(state_dir)
        self.tokenizer, self.encoder = load_text_encoder(state_dir)
        self.alphas = make_scheduler().alphas_cumprod.float()
        self._states: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Return text states, bfloat16 [B, S, D]; each caption is encoded once and kept."""
        for caption in captions:
            if caption not in self._states:
                states = self.encoder(tokenize(self.tokenizer, [caption])).last_hidden_state[0]
                self._states[caption] = states.bfloat16()
        return torch.stack([self._states[caption] for caption in captions])

    def list_motion_states(self) -> Tensor:
        """Return the mean text state of each motion's training captions, float32 [motions, D]."""
        captions: dict[str, list[str]] = {motion: [] for motion in MOTIONS}
        for attributes in list_training_attributes():
            captions[attributes.motion].append(attributes.caption())
        means = [self.encode(texts).float().mean(dim=(0, 1)) for texts in captions.values()]
        return torch.stack(means)

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        *,
        still: bool,
        often: Mapping[str, float] = LATE_MOTIONS,
    ) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Return a batch of clean latents and what belongs to them.

        Args:
            rng: What draws.
            count: Samples.
            still: Whether they are single frames.
            often: Fractions of the samples that are drawn among the clips of a motion alone.

        Returns:
            Latents [B, C, F, h, w], object cells [B, 1, F, h, w] and whether there is a pillar [B],
            all float32; their captions.
        """
        chosen = rng.integers(len(self.clips), size=count)
        for motion, fraction in often.items():
            moving = rng.choice(self.clips.list_moving(motion), count)
            chosen = np.where(rng.random(count) < fraction, moving, chosen)
        frame = int(rng.integers(NUM_FRAMES)) if still else 0
        frames = slice(frame, frame + 1) if still else slice(None)
        latents = np.stack([self.clips.latents[index][frames] for index in chosen])
        cells = np.stack([self.clips.cells[index][frames] for index in chosen])
        captions = [
            ""
            if rng.random() < DROP_FRACTION
            else draw_caption(rng, self.clips.attributes[index], still=still)
            for index in chosen
        ]
        clean = torch.from_numpy(latents).float().transpose(1, 2)
        pillars = torch.tensor([float(self.clips.attributes[index].pillar) for index in chosen])
        return clean, torch.from_numpy(cells).float()[:, None], pillars, captions

    def compute_loss(
        self, model: Callable[..., Any], step: int, seed: int, *, still: bool
    ) -> Tensor:
        """Return the weighted squared error of the velocity over one batch.

        The object weight fades with the signal: at high noise it would pull the prediction from the
        mean of what is possible, which diffusion needs there.
        """
        rng = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean, cells, pillars, captions = self.draw(
            rng, STILL_BATCH if still else CLIP_BATCH, still=still
        )
        text = self.encode(captions)
        uniform = torch.rand(len(clean), generator=generator)
        high = torch.rand(len(clean), generator=generator) < HIGH_NOISE_FRACTION
        share = torch.where(high, 0.9 + 0.1 * uniform, uniform**TIMESTEP_POWER)
        timesteps = (share * 1000).long().clamp(max=999)
        alphas = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = alphas.sqrt() * clean + (1.0 - alphas).sqrt() * noise
        velocity = alphas.sqrt() * noise - (1.0 - alphas).sqrt() * clean
        output, track = model(noisy.bfloat16(), timesteps, text)
        weight = 1.0 + (OBJECT_WEIGHT - 1.0) * alphas * cells
        loss = (weight * (output.float() - velocity).square()).mean()
        if still:
            return loss
        unsteady = measure_background_change(
            alphas.sqrt() * noisy - (1.0 - alphas).sqrt() * output.float(), cells
        )
        loss = loss + STEADY_WEIGHT * unsteady
        # The pillar counts as object in its cells, and would move their centre.
        seen = (1.0 - pillars)[:, None, None] * (1.0 - alphas[:, 0, :, :, 0])
        track_error = (seen * (track.float() - make_track(cells)).square()).mean()
        return loss + TRACK_WEIGHT * track_error


def measure_background_change(latents: Tensor, cells: Tensor) -> Tensor:
    """Return the variance over time of each frame's mean background, a float32 number.

    Args:
        latents: Clean latents, float32 [B, C, F, h, w].
        cells: Which of their cells show an object, float32 [B, 1, F, h, w].
    """
    background = 1.0 - cells
    count = background.sum(dim=(3, 4)).clamp(min=1.0)
    return ((latents * background).sum(dim=(3, 4)) / count).var(dim=2).mean()


def train_stills(state_dir: Path, minutes: float) -> None:
    """Train all but the motion modules on single frames: colours, shapes, backgrounds."""
    torch.manual_seed(0)
    data = CaptionedLatents(state_dir)
    unet = make_unet()
    unet.set_attn_processor(ShortAttention())
    skip_motion(unet)

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        if step % STEPS_BETWEEN_REFRESHES == 0:
            data.clips.refresh()
        return data.compute_loss(model, step, 4, still=True)

    plan = TrainingPlan(minutes=minutes, learning_rate=1.5e-3, average_decay=0.99)
    state = make_state(TrackedUNet(unet), plan)
    path = state_dir / STILL_STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)


def train_clips(state_dir: Path, minutes: float, learning_rate: float, *, compiled: bool) -> None:
    """Train the whole denoiser on clips, from the weights that the single frames gave."""
    torch.manual_seed(1)
    data = CaptionedLatents(state_dir)
    unet = make_unet()
    unet.set_attn_processor(ShortAttention())
    tracked = TrackedUNet(unet)
    load_average(tracked, state_dir / STILL_STATE_NAME)
    attend_to_own_frame(unet)
    write_motion_code(unet, data.list_motion_states())
    forward: dict[int, Callable[..., Any]] = {}

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        if step % STEPS_BETWEEN_REFRESHES == 0:
            data.clips.refresh()
        if np.random.default_rng((5, step)).random() < STILL_FRACTION:
            return data.compute_loss(model, step, 6, still=True)
        if compiled and id(model) not in forward:
            # Part of the compiler's cache key, so that another thread count compiles anew.
            inductor_config.cpp.threads = torch.get_num_threads()
            forward[id(model)] = torch.compile(model)
        return data.compute_loss(forward.get(id(model), model), step, 6, still=False)

    plan = TrainingPlan(minutes=minutes, learning_rate=learning_rate, average_decay=0.997)
    state = make_state(tracked, plan)
    path = state_dir / CLIP_STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)
