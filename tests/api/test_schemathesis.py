"""Documented routes answer generated requests with a result or an error of their format."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from canvas import Studio

OPERATIONS = {
    "POST /v1/images/generations",
    "POST /sdapi/v1/txt2img",
    "GET /sdapi/v1/progress",
    "GET /pictures/{filename}",
    "GET /downloads/{filename}",
    "GET /export.zip",
}
SMALL = {"num_inference_steps": 1, "steps": 1, "n": 1, "batch_size": 1, "n_iter": 1}


@pytest.fixture
def no_finalizers() -> Iterator[None]:
    # hypothesis parses our sources meanwhile; see tests/app_server.py about Python 3.11.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("no_finalizers")
def test_no_generated_request_is_a_server_error(served: Studio) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} >= OPERATIONS
    for operation in operations:
        check_operation(operation, GenerationMode.POSITIVE)
        with suppress(Unsatisfiable):  # no invalid request exists
            check_operation(operation, GenerationMode.NEGATIVE)


def check_operation(operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=15 if operation.method == "post" else 3,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            # The images do not matter here.
            case.body.update({name: 1 for name in SMALL if name in case.body})
        response = case.call(timeout=60)
        # 501 is the answer of /skip and /interrogate.
        assert response.status_code < 500 or response.status_code == 501, (operation.label, case.body, response.text)
        if response.status_code >= 400:
            error = response.json()
            key = "detail" if operation.path.startswith("/sdapi") else "error"
            assert error.get(key) or response.status_code in (404, 405), (operation.label, error)

    check()
