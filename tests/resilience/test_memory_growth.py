"""A server under a memory limit: errors name a size that fits, and memory is released."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.resilience.consistency import assert_consistent, read_url, run_program, send_line, wait_for_exit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


def generate(url: str, size: str) -> tuple[int, dict[str, Any]]:
    body = {"prompt": "a fox", "model": "starter", "size": size, "num_inference_steps": 2}
    response = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    return response.status_code, response.json()


@pytest.mark.long
def test_out_of_memory_suggests_a_size_and_the_next_request_works(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with run_program("serve-with-low-memory", data) as child:
        url = read_url(child)
        assert generate(url, "256x256")[0] == 200
        assert send_line(child, 200) == "limited"
        status, answer = generate(url, "256x256")
        assert status == 507, answer
        message = answer["error"]["message"]
        assert "256x256 needs 0.29 GB of memory" in message
        suggested = re.search(r"(\d+x\d+) would fit", message)
        assert suggested, message
        assert generate(url, suggested[1])[0] == 200, "the suggested size fits"
        assert send_line(child, 0) == "limited"

        status, growth, error = send_line(child, "exhaust").split(" ", 2)
        assert status == "failed"
        assert error.startswith("Ran out of memory at 512x512.")
        assert int(growth) < 32 * 2**20
        status, answer = generate(url, "256x256")
        assert status == 200, f"the next request works: {answer}"
        assert wait_for_exit(child) == 0
    assert assert_consistent(data) == 3
