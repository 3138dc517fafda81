from __future__ import annotations

import pytest
import torch

from canvas.engine.generate import slerp


def noise(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def test_ends_are_exactly_the_two_noises() -> None:
    assert torch.equal(slerp(noise(1), noise(2), 0), noise(1))
    assert torch.equal(slerp(noise(1), noise(2), 1), noise(2))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_between_it_is_noise_of_full_strength(share: float) -> None:
    assert slerp(noise(1), noise(2), share).std().item() == pytest.approx(1, abs=0.05)


def test_likeness_falls_with_the_share() -> None:
    like = torch.nn.functional.cosine_similarity
    found = [
        like(slerp(noise(1), noise(2), share).flatten(), noise(1).flatten(), dim=0).item()
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert found == sorted(found, reverse=True)
    assert found[2] == pytest.approx(0.5**0.5, abs=0.05)


def test_equal_noises_stay() -> None:
    assert torch.allclose(slerp(noise(1), noise(1), 0.3), noise(1))
