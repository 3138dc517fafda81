"""Contact sheets: images of many prompts, each above its prompt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from canvas.prompt_reading import understand
from canvas.training.evaluate import Sampler
from canvas.vocabulary import load_vocabulary

NEWCOMERS = Path(__file__).with_name("newcomers.txt")
MARGIN, LINE = 6, 18  # pixels beside and below an image


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """[n, 3, h, w] in [-1, 1] as RGB images."""
    array = (pixels.add(1).mul(127.5)).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(np.asarray(image)) for image in array.cpu()]


def write_contact_sheet(
    sampler: Sampler,
    path: Path,
    prompts: Sequence[str],
    captions: Sequence[str] = (),
    *,
    side: int = 128,
    columns: int = 10,
) -> None:
    """Write a WebP or PNG with an image of each prompt above its caption."""
    images = to_images(sampler.sample_all(prompts, seed=1, batch_size=16))
    width, height = side + MARGIN, side + LINE
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (image, caption) in enumerate(zip(images, captions or prompts, strict=True)):
        x, y = position % columns * width, position // columns * height
        sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + side + 2), caption[: side // 6], fill="black")
    sheet.save(path, quality=82)


def write_newcomers_sheet(sampler: Sampler, folder: Path) -> None:
    """Write `prompts.webp` beside the model: the prompts of `newcomers.txt`, as the app reads them."""
    prompts = NEWCOMERS.read_text(encoding="utf-8").splitlines()
    vocabulary = load_vocabulary(folder)
    given = [understand(vocabulary, prompt, seed=row).prompt for row, prompt in enumerate(prompts)]
    write_contact_sheet(sampler, folder / "prompts.webp", given, prompts)
