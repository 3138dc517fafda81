"""The targets of the grid tokens."""

import numpy as np
import pytest
import torch

from canvas.training.art_packages import STYLES
from canvas.training.assets import Concept, SpriteSet
from canvas.training.attention_supervision import token_of_cells
from canvas.training.autoencoder import build_autoencoder
from canvas.training.config import CPU, WORD_TOKENS, TokenGrid
from canvas.training.scene_generator import Scene
from canvas.training.scene_table import SceneBatch
from canvas.training.token_targets import TokenTargets, compute_token_targets

STYLE = STYLES.index("flat")
GRID = CPU.token_grid


@pytest.fixture(scope="module")
def sprites() -> SpriteSet:
    concepts = [Concept(name, (name,), name, "1F400", ()) for name in ("red box", "blue box")]
    pixels = np.zeros((2, 16, 16, 4), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 2] = pixels[..., 3] = 255
    return SpriteSet(concepts, pixels, np.arange(2, dtype=np.int32), np.full(2, STYLE, np.int32))


@pytest.fixture(scope="module")
def targets(sprites: SpriteSet, tmp_path_factory: pytest.TempPathFactory) -> TokenTargets:
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    vae = build_autoencoder(CPU)
    vae.register_to_config(scaling_factor=1.0)
    vae.save_pretrained(work / "vae")
    device = torch.device("cpu")
    compute_token_targets(sprites, CPU, work, device)
    return TokenTargets.load(work, device)


def target_of(targets: TokenTargets, sprites: SpriteSet, *concepts: int, **layout: str) -> torch.Tensor:
    scene = Scene(concepts, STYLE, 0, **layout)  # type: ignore[arg-type]
    return targets.of(SceneBatch.from_scenes([scene], sprites))[0]


def test_tiny_objects_change_fewer_tokens_than_huge_ones(targets: TokenTargets, sprites: SpriteSet) -> None:
    changes = {size: target_of(targets, sprites, 0, size=size).abs().sum(1) for size in ("tiny", "huge")}
    assert changes["tiny"].shape == (GRID.rows * GRID.columns,)
    changed = {size: int((tokens > 0.5).sum()) for size, tokens in changes.items()}
    assert 0 < changed["tiny"] < changed["huge"] < GRID.rows * GRID.columns


def test_target_of_a_pair_is_the_sum_of_left_and_right(targets: TokenTargets, sprites: SpriteSet) -> None:
    pair = target_of(targets, sprites, 0, 1)
    left = target_of(targets, sprites, 0, position="left")
    right = target_of(targets, sprites, 1, position="right")
    assert torch.equal(pair, left + right)
    columns = left.abs().sum(1).view(GRID.rows, GRID.columns).sum(0)
    assert columns[:4].sum() > 10 * columns[4:].sum()


@pytest.mark.parametrize(("side", "columns"), [(8, 8), (16, 8), (32, 16)])
def test_cells_map_to_the_token_of_their_block(side: int, columns: int) -> None:
    grid = TokenGrid(columns)
    tokens = token_of_cells(side, grid).view(side, side)
    assert (tokens[0] == -1).all()
    assert (tokens[-1] == -1).all()
    assert int(tokens.max()) == grid.num_tokens - 1
    assert int(tokens[side // 8, 0]) == WORD_TOKENS
    assert int(tokens[side // 8, -1]) == WORD_TOKENS + columns - 1


def test_cpu_preset_has_the_prompt_length_of_clip() -> None:
    assert GRID.num_tokens == 77
