"""What the prompt's last tokens are to hold."""

import numpy as np
import pytest
import torch

from canvas.training.attention import token_of_cells
from canvas.training.autoencoder import build_autoencoder
from canvas.training.grid import WORD_TOKENS, Grid
from canvas.training.layers import Layers, prepare_layers
from canvas.training.packages import STYLES
from canvas.training.presets import CPU
from canvas.training.rows import SceneRows
from canvas.training.scenes import Scene
from canvas.training.sprites import Sprites, Thing

STYLE = STYLES.index("flat")
GRID = CPU.grid


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    things = [Thing(name, (name,), name, "1F400", ()) for name in ("red box", "blue box")]
    pixels = np.zeros((2, 16, 16, 4), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 2] = pixels[..., 3] = 255
    return Sprites(things, pixels, np.arange(2, dtype=np.int32), np.full(2, STYLE, np.int32))


@pytest.fixture(scope="module")
def layers(sprites: Sprites, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    vae = build_autoencoder(CPU)
    vae.register_to_config(scaling_factor=1.0)
    vae.save_pretrained(work / "vae")
    device = torch.device("cpu")
    prepare_layers(sprites, CPU, work, device)
    return Layers.load(work, device)


def layer(layers: Layers, sprites: Sprites, *things: int, **layout: str) -> torch.Tensor:
    scene = Scene(things, STYLE, 0, **layout)  # type: ignore[arg-type]
    return layers.of(SceneRows.of([scene], sprites))[0]


def test_a_tiny_thing_changes_fewer_tokens_than_a_huge_one(
    layers: Layers, sprites: Sprites
) -> None:
    told = {
        size: layer(layers, sprites, 0, size=size).abs().sum(1) for size in ("tiny", "", "huge")
    }
    assert told["tiny"].shape == (GRID.rows * GRID.columns,)
    covered = {size: int((tokens > 0.5).sum()) for size, tokens in told.items()}
    assert 0 < covered["tiny"] < covered["huge"] < GRID.rows * GRID.columns


def test_two_things_add_up_left_and_right(layers: Layers, sprites: Sprites) -> None:
    pair = layer(layers, sprites, 0, 1)
    left = layer(layers, sprites, 0, position="left")
    right = layer(layers, sprites, 1, position="right")
    assert torch.equal(pair, left + right)
    columns = left.abs().sum(1).view(GRID.rows, GRID.columns).sum(0)
    assert columns[:4].sum() > 10 * columns[4:].sum()


@pytest.mark.parametrize(("side", "columns"), [(8, 8), (16, 8), (32, 16)])
def test_every_cell_of_the_middle_has_its_token(side: int, columns: int) -> None:
    grid = Grid(columns)
    tokens = token_of_cells(side, grid).view(side, side)
    assert (tokens[0] == -1).all()
    assert (tokens[-1] == -1).all()
    assert int(tokens.max()) == grid.tokens - 1
    assert int(tokens[side // 8, 0]) == WORD_TOKENS
    assert int(tokens[side // 8, -1]) == WORD_TOKENS + columns - 1


def test_a_prompt_of_the_small_preset_is_as_long_as_clips() -> None:
    assert GRID.tokens == 77
