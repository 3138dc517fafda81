"""Without a GPU functions are not captured; test_cuda.py tests CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from canvas.engine.optimizations.cuda_graphs import CudaGraphCallable


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
