"""Export and run AnimateDiff at its full size, 1.3 billion parameters, and measure the memory.

    python -m benchmarks.full_size --folder FOLDER

The weights are random: they take as much memory and time as trained ones. The folder needs 12 GB;
a checkpoint that is there already is used again. docs/full-size.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.machine import describe_machine
from benchmarks.process_memory import ProcessMemory, run_measured

GIB = 2**30
NUM_FRAMES, SIZE, STEPS = 8, 256, 2
PROMPT = "a red circle moves left on a gray background"
# CLIP's tokenizer has 49408 tokens; these are its first and last, and plain letters before them.
VOCABULARY_SIZE, MAX_LENGTH = 49408, 77
MEMORY_MODES = ("normal", "low")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; figures go to stdout."""
    parser = argparse.ArgumentParser(description="Export and run AnimateDiff at its full size.")
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    folder = options.folder
    checkpoint, adapter, bundle = (folder / name for name in ("sd15", "adapter", "bundle"))
    if not (checkpoint / "model_index.json").is_file():
        make_checkpoint(checkpoint, adapter)
    shutil.rmtree(bundle, ignore_errors=True)
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "export": _export(checkpoint, adapter, bundle),
    }
    for memory in MEMORY_MODES:
        results[memory] = _generate(bundle, folder / f"{memory}.npy", memory)
    normal, low = (np.load(folder / f"{memory}.npy").astype(int) for memory in MEMORY_MODES)
    results["largest_difference"] = int(np.abs(normal - low).max())
    print(json.dumps(results) if options.json else "\n".join(_describe(results)))
    return 0


def make_checkpoint(checkpoint: Path, adapter: Path) -> None:
    """Save a random Stable Diffusion 1.5 pipeline and an AnimateDiff v2 adapter of full size."""
    torch.manual_seed(0)
    # Motion modules start at zero, which would hide them from the comparison with the graph.
    motion = MotionAdapter(use_motion_mid_block=True, motion_max_seq_length=32)
    for module in motion.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    motion.save_pretrained(adapter)
    del motion
    tokenizer = _make_tokenizer(checkpoint.parent / "tokenizer-files")
    text = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=768, intermediate_size=3072,
        num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(checkpoint)


def _make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer of the usual size that knows letters only."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    unused = (f"unused-{index}" for index in range(VOCABULARY_SIZE))
    fill = VOCABULARY_SIZE - len(vocabulary) - len(special)
    vocabulary += [*(next(unused) for _ in range(fill)), *special]
    tokens = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH
    )


def _export(checkpoint: Path, adapter: Path, bundle: Path) -> dict[str, Any]:
    arguments = ["export", str(checkpoint), "--motion-adapter", str(adapter), "-o", str(bundle)]
    measured = _run([*arguments, "--num-inference-steps", "2,25", "--json"])
    files = sorted(path for path in (bundle / "unet").iterdir())
    return {
        **_figures(measured),
        "unet_files": {path.name: path.stat().st_size for path in files},
        "components": json.loads(measured.stdout)["components"],
    }


def _generate(bundle: Path, output: Path, memory: str) -> dict[str, Any]:
    arguments = ["generate", PROMPT, "--bundle", str(bundle), "--seed", "7", "-o", str(output)]
    arguments += ["--num-frames", str(NUM_FRAMES), "--height", str(SIZE), "--width", str(SIZE)]
    arguments += ["--num-inference-steps", str(STEPS), "--memory", memory, "--force", "--json"]
    measured = _run(arguments)
    return {**_figures(measured), "video": json.loads(measured.stdout)["videos"][0]}


def _run(arguments: list[str]) -> ProcessMemory:
    code = "from mutoscope.runtime.main import main; main()"
    return run_measured([sys.executable, "-c", code, *arguments])


def _figures(measured: ProcessMemory) -> dict[str, float | int]:
    return {name: value for name, value in asdict(measured).items() if name != "stdout"}


def _describe(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    yield ""
    yield "| step | time | peak memory | of it anonymous |"
    yield "|---|---|---|---|"
    for name in ("export", *MEMORY_MODES):
        figures = results[name]
        label = name if name == "export" else f"generate --memory {name}"
        yield (
            f"| `{label}` | {figures['seconds']:.0f} s | {figures['peak_rss_bytes'] / GIB:.2f} GiB "
            f"| {figures['peak_anonymous_bytes'] / GIB:.2f} GiB |"
        )
    yield ""
    yield "| component | nodes | files | worst PSNR |"
    yield "|---|---|---|---|"
    for name, component in results["export"]["components"].items():
        worst = min(record["psnr_db"] for record in component["parity"])
        size = component["size_bytes"] / 1e6
        yield f"| `{name}` | {component['nodes']} | {size:.1f} MB | {worst:.1f} dB |"
    yield ""
    for name, size in results["export"]["unet_files"].items():
        yield f"unet/{name}: {size / 1e6:.3f} MB"
    yield f"largest difference between both modes: {results['largest_difference']} of 255"


if __name__ == "__main__":
    raise SystemExit(main())
