"""Command line: `python -m training vae|text|unet|save`."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_STATE_DIR = Path("~/.cache/mutoscope-training")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training")
    parser.add_argument("stage", choices=["vae", "text"])
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    state_dir = args.state_dir.expanduser()
    state_dir.mkdir(parents=True, exist_ok=True)
    if args.stage == "vae":
        from training.vae import train_vae

        train_vae(state_dir, args.minutes)
    elif args.stage == "text":
        from training.text_encoder import train_text_encoder

        train_text_encoder(state_dir, args.minutes)


if __name__ == "__main__":
    main()
