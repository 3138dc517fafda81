from __future__ import annotations

import pytest
import torch

from canvas.engine.generate import slerp


def noise(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def test_ends_equal_the_two_noises() -> None:
    assert torch.equal(slerp(noise(1), noise(2), 0), noise(1))
    assert torch.equal(slerp(noise(1), noise(2), 1), noise(2))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_variance_is_kept_between_the_ends(fraction: float) -> None:
    assert slerp(noise(1), noise(2), fraction).std().item() == pytest.approx(1, abs=0.05)


def test_similarity_falls_with_the_fraction() -> None:
    similarity = torch.nn.functional.cosine_similarity
    similarities = [
        similarity(slerp(noise(1), noise(2), fraction).flatten(), noise(1).flatten(), dim=0).item()
        for fraction in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[2] == pytest.approx(0.5**0.5, abs=0.05)


def test_equal_noises_are_unchanged() -> None:
    assert torch.allclose(slerp(noise(1), noise(1), 0.3), noise(1))
