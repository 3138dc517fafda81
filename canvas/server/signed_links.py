"""Signed links to images, which are valid for an hour without a login."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qs

LIFETIME = 3600.0  # seconds


class SignedLinks:
    """Signs the file names of images, and checks the query strings of links to them."""

    def __init__(self, secret: bytes, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now

    def query(self, filename: str) -> str:
        """The query string of a link that ends in LIFETIME."""
        expires = str(int(self._now() + LIFETIME))
        return f"expires={expires}&signature={self._sign(filename, expires)}"

    def is_valid(self, filename: str, query: str) -> bool:
        """Whether a query string is that of an unexpired link to this image."""
        values = parse_qs(query)
        [expires], [signature] = values.get("expires", [""])[:1], values.get("signature", [""])[:1]
        if not (expires.isascii() and expires.isdecimal() and len(expires) < 20):
            return False
        right = hmac.compare_digest(signature.encode(), self._sign(filename, expires).encode())
        return right and self._now() < int(expires)

    def _sign(self, filename: str, expires: str) -> str:
        # The first word separates these signatures from those of visitor cookies.
        return hmac.new(self._secret, f"link {expires} {filename}".encode(), hashlib.sha256).hexdigest()
