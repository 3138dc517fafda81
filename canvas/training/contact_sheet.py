"""A contact sheet: the images of 64 prompts."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from canvas.training.sampling import Sampler

PROMPTS = (
    "a fox in the snow, 3d",
    "a red apple, flat",
    "a rocket in space, cartoon",
    "an octopus under the sea, sticker",
    "a cat at night, glossy",
    "a castle at sunset, 3d",
    "a robot in the city, flat",
    "a dog on the beach, cartoon",
    "an owl in the forest, 3d",
    "a hamburger on a yellow background, glossy",
    "a car in the rain, sticker",
    "a sunflower in a meadow, 3d",
    "a camel in the desert, flat",
    "a penguin in the snow, cartoon",
    "a rocket and a moon at night, flat",
    "a dog and a cat in a room, 3d",
    "a pizza on a blue background, 3d",
    "a dragon in the mountains, sticker",
    "a guitar on a purple background, glossy",
    "a sailboat in the sky, flat",
    "a ghost in the forest, cartoon",
    "an elephant in a meadow, 3d",
    "a shark under the sea, flat",
    "a cactus in the desert, 3d",
    "a bicycle in the city, cartoon",
    "three apples in a room, 3d",
    "a tiny frog on the beach, sticker",
    "a huge butterfly in the sky, glossy",
    "a bear on the left in the forest, 3d",
    "a santa claus in the snow, 3d",
    "a unicorn at sunset, cartoon",
    "a lion and a tree in the desert, sticker",
    "a puppy in the snow, 3d",
    "a kitten in a room, cartoon",
    "a bunny in a meadow, glossy",
    "a yacht on the beach, flat",
    "a cottage in the mountains, 3d",
    "an alligator, sticker",
    "a lorry in the city, cartoon",
    "a muffin on a pink background, 3d",
    "a smiling face on a green background, 3d",
    "a crying face in the rain, cartoon",
    "an alien in space, 3d",
    "a skull at night, sticker",
    "an astronaut in space, flat",
    "a parrot in the forest, cartoon",
    "a crab and a fish under the sea, 3d",
    "a snowman and a fir tree in the snow, 3d",
    "a train in the mountains, flat",
    "a volcano at sunset, 3d",
    "a strawberry on a white background, glossy",
    "a crown on a red background, 3d",
    "a balloon in the sky, 3d",
    "a key on black, cartoon",
    "a panda in a room, flat",
    "a tiger in a meadow, sticker",
    "a fire engine in the city, 3d",
    "ice cream on the beach, glossy",
    "a light bulb at night, 3d",
    "a mushroom in the forest, 3d",
    "fox",
    "a whale",
    "two cats in a room, 3d",
    "a bee and a sunflower in a meadow, cartoon",
)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """[n, 3, h, w] in [-1, 1] to RGB images."""
    array = (pixels.add(1).mul(127.5)).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(np.asarray(image)) for image in array.cpu()]


def write_contact_sheet(
    sampler: Sampler,
    path: Path,
    num_inference_steps: int,
    guidance_scale: float,
    columns: int = 8,
    prompts: tuple[str, ...] = PROMPTS,
) -> None:
    """Write a PNG with the images of the prompts, each above its prompt."""
    images = []
    for start in range(0, len(prompts), 16):
        batch = list(prompts[start : start + 16])
        pixels = sampler.sample(batch, num_inference_steps, guidance_scale, seed=start)
        images += to_images(pixels)
    side = images[0].width
    width, height = side + 6, side + 18
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x, y = position % columns * width, position // columns * height
        sheet.paste(image, (x, y))
        draw.text((x, y + side + 2), prompt[: side // 5], fill="black")
    sheet.save(path)
