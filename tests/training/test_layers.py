"""What the prompt's last tokens are to hold."""

import numpy as np
import pytest
import torch

from canvas.training.attention import token_of_cells
from canvas.training.autoencoder import build_autoencoder
from canvas.training.layers import COLUMNS, FIRST_LAYER_TOKEN, ROWS, TOKENS, Layers, prepare_layers
from canvas.training.packages import STYLES
from canvas.training.presets import CPU
from canvas.training.scenes import PLACEMENTS, Scene
from canvas.training.sprites import Sprites, Thing

STYLE = STYLES.index("flat")


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    work = tmp_path_factory.mktemp("work")
    things = [Thing(name, (name,), name, "1F400", ()) for name in ("red box", "blue box")]
    pixels = np.zeros((2, 16, 16, 4), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 2] = pixels[..., 3] = 255
    sprites = Sprites(things, pixels, np.arange(2, dtype=np.int32), np.full(2, STYLE, np.int32))
    torch.manual_seed(0)
    vae = build_autoencoder(CPU)
    vae.register_to_config(scaling_factor=1.0)
    vae.save_pretrained(work / "vae")
    prepare_layers(sprites, CPU, work)
    return Layers.load(work, sprites)


def test_a_tiny_thing_changes_fewer_tokens_than_a_huge_one(layers: Layers) -> None:
    told = {
        size: layers.of([Scene((0,), STYLE, 0, size=size)])[0].abs().sum(1) for size in PLACEMENTS
    }
    assert told["tiny"].shape == (ROWS * COLUMNS,)
    covered = {size: int((tokens > 0.5).sum()) for size, tokens in told.items()}
    assert 0 < covered["tiny"] < covered["huge"] < ROWS * COLUMNS


def test_two_things_add_up_left_and_right(layers: Layers) -> None:
    pair = layers.of([Scene((0, 1), STYLE, 0)])
    left = layers.of([Scene((0,), STYLE, 0, position="left")])
    right = layers.of([Scene((1,), STYLE, 0, position="right")])
    assert torch.equal(pair, left + right)
    columns = left[0].abs().sum(1).view(ROWS, COLUMNS).sum(0)
    assert columns[:4].sum() > 10 * columns[4:].sum()


@pytest.mark.parametrize("side", [8, 16])
def test_every_cell_of_the_middle_has_its_token(side: int) -> None:
    tokens = token_of_cells(side).view(side, side)
    assert (tokens[0] == -1).all()
    assert (tokens[-1] == -1).all()
    assert int(tokens.max()) == TOKENS - 1
    assert int(tokens[side // 8, 0]) == FIRST_LAYER_TOKEN
    assert int(tokens[side // 8, -1]) == FIRST_LAYER_TOKEN + COLUMNS - 1
