"""Command line: `python -m training STAGE`, with the stages in their order below."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import torch

from training.checkpoint import save_checkpoint, save_few_step, unpack_checkpoint
from training.few_step import distil
from training.latents import encode_chunks
from training.text_encoder import train_text_encoder
from training.unet import train_clips, train_stills
from training.vae import train_narrow_vae, train_vae

STAGES: Final = (
    "vae",
    "narrow-vae",
    "text",
    "latents",
    "still",
    "clip",
    "distil",
    "save",
    "save-few-step",
    "unpack",
)
SHIPPED: Final = Path("checkpoints/moving-shapes")
DEFAULT_STATE_DIR: Final = Path("~/.cache/mutoscope-training")


def main() -> None:
    """Run one stage of the training."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--minutes", type=float, default=10.0, help="budget, over all runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--first-chunk", type=int, default=0)
    parser.add_argument("--last-chunk", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak, clip and distil")
    parser.add_argument("--compile", action="store_true", help="the denoiser, in clip")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="of save and save-few-step")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="what unpack reads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    state_dir = args.state_dir.expanduser()
    state_dir.mkdir(parents=True, exist_ok=True)
    if args.stage == "vae":
        train_vae(state_dir, args.minutes)
    elif args.stage == "narrow-vae":
        train_narrow_vae(state_dir, args.minutes)
    elif args.stage == "text":
        train_text_encoder(state_dir, args.minutes)
    elif args.stage == "latents":
        encode_chunks(state_dir, args.first_chunk, args.last_chunk)
    elif args.stage == "still":
        train_stills(state_dir, args.minutes)
    elif args.stage == "clip":
        train_clips(state_dir, args.minutes, args.learning_rate, compiled=args.compile)
    elif args.stage == "distil":
        distil(state_dir, args.minutes, args.learning_rate)
    elif args.stage == "unpack":
        try:
            states = unpack_checkpoint(args.checkpoint, state_dir)
        except ValueError as error:
            parser.error(str(error))
        print(f"{state_dir} has {', '.join(states)}")
    else:
        save = save_checkpoint if args.stage == "save" else save_few_step
        print(f"{save(state_dir, args.output)} bytes in {args.output}")


if __name__ == "__main__":
    main()
