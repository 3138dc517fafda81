"""Whether the Hub answers from here, and what it thinks of the token."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 8.0  # seconds


@dataclass(frozen=True)
class Reach:
    """`name` is whose token it is, "" without one; `wrong` says what is wrong, else empty."""

    name: str = ""
    offline: str = ""
    wrong: str = ""


def reach_hub(endpoint: str | None = None, token: str | None = None) -> Reach:
    """Ask the Hub once who we are; the defaults are huggingface_hub's own."""
    import httpx
    from huggingface_hub import constants, get_token

    token = token or get_token()
    address = f"{endpoint or constants.ENDPOINT}/api/whoami-v2"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if constants.HF_HUB_OFFLINE:
        return Reach(offline="HF_HUB_OFFLINE is set; unset it to download models")
    try:
        answer = httpx.get(address, headers=headers, timeout=PATIENCE, follow_redirects=True)
    except httpx.HTTPError as error:
        return Reach(offline=f"cannot be reached ({type(error).__name__}); check the connection")
    if answer.status_code >= 500:
        return Reach(offline=f"has a fault of its own (status {answer.status_code}); try later")
    if token and answer.status_code in (401, 403):
        return Reach(wrong="is not taken; make a new one at https://huggingface.co/settings/tokens")
    if token and answer.is_success:
        return Reach(name=str(answer.json().get("name", "")))
    return Reach()
