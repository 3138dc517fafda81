"""Eager and CUDA graph training steps, and the time budget."""

import logging

import pytest
import torch
from torch import nn

from canvas.training.attention_supervision import AttentionSupervision
from canvas.training.config import GPU
from canvas.training.denoiser import DenoisingLoss, build_denoiser
from canvas.training.distributed import ProcessGroup
from canvas.training.time_budget import TimeBudget
from canvas.training.train_step import CudaGraphTrainStep, EagerTrainStep, make_train_step

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class LinearRegression(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device=device))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = (self.weight[0] * x + self.weight[1] - y).square().mean()
        return error, error.sqrt()


def fit(device: torch.device, cuda_graphs: bool, count: int = 400) -> tuple[LinearRegression, list[float], object]:
    """The fitted model, the second value of each step, and the train step."""
    model = LinearRegression(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0, fused=True)
    train_step = make_train_step(ProcessGroup(), optimizer, model, cuda_graphs)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for _ in range(count):
        x = torch.randn(64, generator=generator)
        _, error = train_step(0.02, x.to(device), (2 * x - 1).to(device))
        errors.append(float(error.detach()))
    return model, errors, train_step


def test_eager_step_trains_and_returns_all_values() -> None:
    model, errors, train_step = fit(CPU, cuda_graphs=True)
    assert isinstance(train_step, EagerTrainStep)
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.05)
    assert errors[-1] < 0.05 < errors[0]


@needs_gpu
def test_cuda_graph_gives_the_results_of_eager_steps() -> None:
    device = torch.device("cuda")
    model, errors, train_step = fit(device, cuda_graphs=True)
    _, eager_errors, _ = fit(device, cuda_graphs=False)
    assert isinstance(train_step, CudaGraphTrainStep)
    assert train_step._graph is not None
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.05)
    assert errors[-1] == pytest.approx(eager_errors[-1], abs=0.02)


@needs_gpu
def test_failed_recording_falls_back_to_eager_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = LinearRegression(torch.device("cuda"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, fused=True)

    def loss_function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss, error = model(x, y)
        return loss * (1 if float(loss) >= 0 else 2), error  # synchronizes with the device

    train_step = make_train_step(ProcessGroup(), optimizer, loss_function, cuda_graphs=True)
    x = torch.randn(64, device="cuda")
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            train_step(0.02, x, 2 * x - 1)
    assert "CUDA graph failed" in caplog.text
    assert model.weight.tolist() == pytest.approx([2, -1], abs=0.1)


@needs_gpu
def test_denoiser_step_is_recorded_at_full_size() -> None:
    device = torch.device("cuda")
    model = build_denoiser(GPU).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    supervision = AttentionSupervision(model, GPU.token_grid, GPU.attention_loss_every)
    loss_function = DenoisingLoss(model, supervision)
    train_step = make_train_step(ProcessGroup(), optimizer, loss_function, cuda_graphs=True)
    generator = torch.Generator(device).manual_seed(1)
    latents = torch.randn(16, 16, GPU.latent_size, GPU.latent_size, device=device)
    prompt_embeds = torch.randn(16, GPU.token_grid.num_tokens, GPU.text_hidden_size, device=device)
    losses = []
    for _ in range(30):
        batch = loss_function.make_batch(latents, prompt_embeds, generator)
        losses.append(float(train_step(1e-3, *batch)[1]))
    assert isinstance(train_step, CudaGraphTrainStep)
    assert train_step._graph is not None
    assert losses[-1] < losses[0]


def test_budget_with_a_deadline_counts_from_the_start_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("canvas.training.time_budget.time.monotonic", lambda: now)
    budget = TimeBudget(5.0, CPU, deadline=1060.0)
    now = 1020.0  # after the preparation
    budget.start()
    now = 1040.0
    assert budget.progress == pytest.approx(0.5)
    now = 1060.0
    assert budget.is_exhausted
