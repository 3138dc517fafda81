"""A training's step, operation by operation and as one CUDA graph."""

import logging

import pytest
import torch
from torch import nn

from canvas.training.attention import AttentionGuide
from canvas.training.checkpoints import Clock
from canvas.training.denoiser import DenoisingLoss, build_denoiser
from canvas.training.parallel import Team
from canvas.training.presets import GPU
from canvas.training.steps import GraphedSteps, PlainSteps, open_steps

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Line(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device=device))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = (self.weight[0] * x + self.weight[1] - y).square().mean()
        return error, error.sqrt()


def fit(device: torch.device, graphs: bool, count: int = 400) -> tuple[Line, list[float], object]:
    model = Line(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0, fused=True)
    steps = open_steps(Team(), optimizer, model, graphs)
    generator = torch.Generator().manual_seed(1)
    roots = []
    for _ in range(count):
        x = torch.randn(64, generator=generator)
        _, root = steps(0.02, x.to(device), (2 * x - 1).to(device))
        roots.append(float(root.detach()))
    return model, roots, steps


def test_plain_steps_learn_and_tell_what_the_losses_gave() -> None:
    model, roots, steps = fit(CPU, graphs=True)
    assert isinstance(steps, PlainSteps)
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.05)
    assert roots[-1] < 0.05 < roots[0]


@needs_gpu
def test_a_graph_learns_what_plain_steps_learn() -> None:
    device = torch.device("cuda")
    model, roots, steps = fit(device, graphs=True)
    _, plain_roots, _ = fit(device, graphs=False)
    assert isinstance(steps, GraphedSteps)
    assert steps._graph is not None
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.05)
    assert roots[-1] == pytest.approx(plain_roots[-1], abs=0.02)


@needs_gpu
def test_a_step_that_cannot_be_recorded_goes_on_plainly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Line(torch.device("cuda"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, fused=True)

    def losses(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        error, root = model(x, y)
        return error * (1 if float(error) >= 0 else 2), root  # waits for the device

    steps = open_steps(Team(), optimizer, losses, graphs=True)
    x = torch.randn(64, device="cuda")
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            steps(0.02, x, 2 * x - 1)
    assert "no CUDA graph" in caplog.text
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.1)


@needs_gpu
def test_the_denoisers_step_is_recorded_at_full_size() -> None:
    device = torch.device("cuda")
    model = build_denoiser(GPU).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = DenoisingLoss(model, AttentionGuide(model, GPU.grid, GPU.guide_every))
    steps = open_steps(Team(), optimizer, losses, graphs=True)
    generator = torch.Generator(device).manual_seed(1)
    latents = torch.randn(16, 16, GPU.latent_size, GPU.latent_size, device=device)
    hidden = torch.randn(16, GPU.grid.tokens, GPU.text_hidden, device=device)
    errors = [float(steps(1e-3, *losses.batch(latents, hidden, generator))[1]) for _ in range(30)]
    assert isinstance(steps, GraphedSteps)
    assert steps._graph is not None
    assert errors[-1] < errors[0]


def test_a_clock_with_a_deadline_has_what_is_left_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("canvas.training.checkpoints.time.monotonic", lambda: now)
    clock = Clock(5.0, CPU, deadline=1060.0)
    now = 1020.0  # what was prepared meanwhile
    clock.begin()
    now = 1040.0
    assert clock.share == pytest.approx(0.5)
    now = 1060.0
    assert clock.is_over
