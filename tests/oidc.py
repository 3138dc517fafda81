"""A stand-in for Hugging Face's sign-in: an OpenID provider that knows one person."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


class Provider:
    """Serves on a free port; whoever asks is `person`, without a question."""

    def __init__(self, client_id: str, person: dict[str, str]) -> None:
        self.client_id = client_id
        self.person = person
        self.nonces: dict[str, str] = {}  # by the code that was given out
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def token(self, code: str) -> dict[str, Any]:
        """What the Space gets for a code."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.client_id, "iat": now, "exp": now + 3600}
        claims |= {"nonce": self.nonces.pop(code), **self.person}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return {
            "access_token": "none",
            "token_type": "bearer",
            "expires_in": 3600,
            "id_token": signed,
        }

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        url = self.provider.url
        if asked.path == "/.well-known/openid-configuration":
            self._answer(
                {
                    "issuer": url,
                    "authorization_endpoint": f"{url}/authorize",
                    "token_endpoint": f"{url}/token",
                    "jwks_uri": f"{url}/keys",
                }
            )
        elif asked.path == "/keys":
            self._answer({"keys": [self.provider.key.as_dict(private=False)]})
        else:
            self._send_back({name: values[0] for name, values in parse_qs(asked.query).items()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer(self.provider.token(parse_qs(body)["code"][0]))

    def _send_back(self, asked: dict[str, str]) -> None:
        code = f"code {len(self.provider.nonces)}"
        self.provider.nonces[code] = asked["nonce"]
        back = urlencode({"code": code, "state": asked["state"]})
        self.send_response(302)
        joint = "&" if "?" in asked["redirect_uri"] else "?"
        self.send_header("Location", f"{asked['redirect_uri']}{joint}{back}")
        self.end_headers()

    def _answer(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


def _handler_for(provider: Provider) -> type[_Handler]:
    return type("Handler", (_Handler,), {"provider": provider})
