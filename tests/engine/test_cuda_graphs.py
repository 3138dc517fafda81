"""Where nothing can be recorded a function is run; test_cuda.py holds what a GPU does."""

from __future__ import annotations

import pytest
import torch

from canvas.engine.optimizations.cuda_graphs import CudaGraphCallable


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_cannot_be_recorded_is_run_each_time(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def double(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(tensor)
        return (tensor * 2,)

    recorded = CudaGraphCallable(double)
    found = [recorded(torch.full((3,), float(number)))[0].tolist() for number in range(4)]
    assert found == [[2.0 * number] * 3 for number in range(4)]
    assert len(calls) == 4
    assert caplog.text.count("piece by piece") == 1
