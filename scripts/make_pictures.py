"""Make the pictures of README.md from the bundle that ships: an animation and a contact sheet.

Every pixel comes from `VideoPipeline`; this script only lays the clips side by side.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mutoscope.runtime import VideoPipeline

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROMPTS = (
    "a red circle moves left on a gray background",
    "a yellow star bounces on a black background",
    "a blue square moves up on a white background",
    "a magenta triangle orbits on a black background",
    "a green star grows on a white background",
    "a cyan circle moves right behind a pillar on a gray background",
)
SEED = 7
SCALE = 2
COLUMNS = 3
LABEL_HEIGHT = 22
SHEET_FRAMES = 8


def main() -> None:
    """Generate the clips and write docs/images/clips.gif and docs/images/contact_sheet.png."""
    with VideoPipeline.open() as pipeline:
        videos = [pipeline.generate(prompt, seed=SEED) for prompt in PROMPTS]
    clips = [enlarge(video.frames) for video in videos]
    tiles = [
        [add_label(frame, prompt) for frame in clip]
        for clip, prompt in zip(clips, PROMPTS, strict=True)
    ]
    animation = [lay_out([tile[index] for tile in tiles]) for index in range(len(tiles[0]))]
    IMAGES.mkdir(parents=True, exist_ok=True)
    milliseconds = round(1000 / videos[0].frame_rate)
    animation[0].save(
        IMAGES / "clips.gif",
        save_all=True,
        append_images=animation[1:],
        duration=milliseconds,
        loop=0,
        optimize=True,
    )
    rows = [np.concatenate(clip[:: len(clip) // SHEET_FRAMES], axis=1) for clip in clips]
    Image.fromarray(np.concatenate(rows)).save(IMAGES / "contact_sheet.png", optimize=True)


def enlarge(frames: np.ndarray) -> np.ndarray:
    """Return frames uint8 [F, H, W, 3] with every pixel repeated SCALE times."""
    return frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def add_label(frame: np.ndarray, prompt: str) -> Image.Image:
    """Return one frame with its prompt, shortened to what it shows, on a strip below."""
    height, width, _ = frame.shape
    tile = Image.new("RGB", (width + 60, height + LABEL_HEIGHT), "white")
    tile.paste(Image.fromarray(frame), (30, 0))
    text = prompt.partition(" on a ")[0]
    ImageDraw.Draw(tile).text((tile.width // 2, height + 5), text, "black", anchor="ma")
    return tile


def lay_out(tiles: list[Image.Image]) -> Image.Image:
    """Return the tiles as one picture, COLUMNS side by side."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (width * COLUMNS, height * rows), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (width * (index % COLUMNS), height * (index // COLUMNS)))
    return sheet


if __name__ == "__main__":
    main()
