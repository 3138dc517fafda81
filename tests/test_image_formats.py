from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.errors import InvalidInput
from canvas.image_formats import data_url, decode_base64, encode_base64


@given(st.binary(), st.integers(1, 100), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", " \t"]))
def test_every_way_to_write_base64_is_read(
    content: bytes, length: int, url_safe: bool, padded: bool, separator: str
) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(content).decode()
    text = text if padded else text.rstrip("=")
    lines = separator.join(text[start : start + length] for start in range(0, len(text), length))
    assert decode_base64(lines, "image") == content
    assert decode_base64(f"data:image/png;base64,{lines}{separator}", "image") == content


def test_own_base64_is_read() -> None:
    assert decode_base64(encode_base64(b"abc"), "image") == decode_base64(data_url(b"abc", "png"), "image") == b"abc"


@pytest.mark.parametrize("text", ["!", "a", "abcde", "é", "data:image/png,abc", "ab=cd", "\0"])
def test_other_text_is_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"Mask must be an image file .* in base64"):
        decode_base64(text, "mask")
