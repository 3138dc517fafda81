"""Validators of single values; each returns the clean value or raises InvalidInput."""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Collection

from canvas.errors import InvalidInput, LazyMessage

MAX_TEXT = 10_000  # characters


def text(field: str, value: object) -> str:
    """A stripped string of at most MAX_TEXT characters without control characters; None is ""."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(field, value, LazyMessage("text"))
    if len(value) > MAX_TEXT:
        raise InvalidInput(field, value, LazyMessage("at most {number} characters", number=f"{MAX_TEXT:,}"))
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    for character in value:
        # Cc: control characters; Cs: lone surrogates, which cannot be encoded
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise InvalidInput(field, character, LazyMessage("text without control characters"))
    return value.strip()


def number(field: str, value: object, low: float, high: float) -> float:
    """A number within the inclusive bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        allowed = LazyMessage("a number between {low} and {high}", low=f"{low:g}", high=f"{high:g}")
        raise InvalidInput(field, value, allowed)
    return float(value)


def integer(field: str, value: object, low: int, high: int) -> int:
    """An integer within the inclusive bounds; a float such as 512.0 is accepted."""
    # The range excludes NaN and infinity; math.isfinite would fail for huge integers.
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        whole = int(value)
        if whole == value:
            return whole
    allowed = LazyMessage("a whole number between {low} and {high}", low=low, high=high)
    raise InvalidInput(field, value, allowed)


def integer_from_text(field: str, value: str, low: int, high: int) -> int:
    """`integer` of decimal digits; Python converts at most 4,300 of them."""
    return integer(field, int(value) if value.isdecimal() and len(value) < 20 else value, low, high)


def multiple_of_8(field: str, value: int) -> int:
    """A size in pixels that is divisible by 8, the downsampling factor of the VAE."""
    if value % 8:
        lower = value // 8 * 8
        allowed = LazyMessage("a multiple of 8, such as {lower} or {higher}", lower=lower, higher=lower + 8)
        raise InvalidInput(field, value, allowed)
    return value


def boolean(field: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidInput(field, value, LazyMessage("true or false"))
    return value


def choice(field: str, value: object, choices: Collection[str]) -> str:
    """One of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInput(field, value, LazyMessage("one of {names}", names=", ".join(choices)))
    return value


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach the address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
