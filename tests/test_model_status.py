from __future__ import annotations

from canvas import MODELS
from canvas.model_status import describe_model


def test_a_download_says_bytes_time_and_licence_before_it_begins() -> None:
    state = describe_model(
        MODELS["small"], "hub", missing_bytes=4_300_000_000, free_bytes=10**11, seconds=90.0
    )
    assert state.text == (
        "4.3 GB to download, 6 min at 100 Mbit/s, 100.0 GB free · licence creativeml-openrail-m "
        "· native 512 × 512 · about 90 s a picture here"
    )


def test_before_the_hub_was_asked_it_says_what_the_catalogue_knows() -> None:
    state = describe_model(
        MODELS["tiny"], "hub", missing_bytes=None, free_bytes=10**11, seconds=None
    )
    assert state.text.startswith("3.2 GB to download, 100.0 GB free · licence openrail")


def test_what_is_on_disk_needs_no_such_words() -> None:
    state = describe_model(MODELS["tiny"], "disk", missing_bytes=None, free_bytes=1, seconds=None)
    assert state.text == "on disk · native 512 × 512"
