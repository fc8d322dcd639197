"""Who may use the API: one operator token per PoP, sent as a bearer token.

What it is: an ASGI middleware in front of the router, so that also unknown paths and refused methods answer 401 first.
What it is not: the broker's accounts. `/mqtt` is open here because the broker authenticates each MQTT CONNECT itself.
What must stay true: the token is compared in constant time and never logged, stored or echoed.
"""

import hmac
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from edgeflow.api.problems import problem_response
from edgeflow.errors import Unauthorized

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/mqtt", "/v1/pops/join"})
OPEN_PREFIXES = ("/live/",)
"""The page's shell only: it holds no data and fetches everything with the token."""


def read_token(path: Path) -> str:
    """The token in the file at `path`. Raises ValueError when it is empty: an empty token would let everyone in."""
    token = path.read_text().strip()
    if not token:
        raise ValueError(f"the token file {path} is empty")
    return token


class BearerAuth:
    """Lets a request pass when it carries the token, or when its path is open to everyone."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = b"bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        await problem_response(Unauthorized())(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)

    def _is_allowed(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.partition(b" ")
                return hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._expected)
        return False
