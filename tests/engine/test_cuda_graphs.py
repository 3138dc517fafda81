"""Without a GPU functions are not captured; test_cuda.py tests CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from canvas.engine.optimizations.cuda_graphs import MAX_GRAPHS, CudaGraphCallable


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_function_that_cannot_be_captured_runs_every_time(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def double(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(tensor)
        return (tensor * 2,)

    double_on_gpu = CudaGraphCallable(double)
    results = [double_on_gpu(torch.full((3,), float(number)))[0].tolist() for number in range(4)]
    assert results == [[2.0 * number] * 3 for number in range(4)]
    assert len(calls) == 4
    assert caplog.text.count("CUDA graphs are not used") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_oldest_shapes_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    double_on_gpu = CudaGraphCallable(lambda tensor: (tensor * 2,))
    for size in [*range(MAX_GRAPHS + 1), 0]:
        double_on_gpu(torch.ones(size))
    assert not caplog.records, "the first shape is new again, which is not captured"
    double_on_gpu(torch.ones(2))
    assert caplog.text.count("CUDA graphs are not used") == 1, "the others are captured"


def test_a_capture_without_enough_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", out_of_memory)
    double_on_gpu = CudaGraphCallable(lambda tensor: (tensor * 2,))
    double_on_gpu(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        double_on_gpu(torch.ones(1))
