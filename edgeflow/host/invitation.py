"""The token with which a new PoP joins, and what is said under it.

What it is: the token as one line of text (where to ask, the fingerprint of the cluster's CA, a secret, until when), and the sealing of the one question
and its answer with keys that are made from the secret.
What it is not: who may join (edgeflow.api.joining), or what is done with the answer (joining.py).
What must stay true: the secret never travels; whoever does not have it can neither read nor change a word, so the question may go over plain HTTP;
a token that is damaged is refused before anybody is asked.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgeflow.errors import BadToken

PREFIX = "efjoin1."
SECRET_BYTES = 32
NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Invitation:
    """A token."""

    id: str
    secret: str
    cluster: str
    issuer: str
    """The PoP that made it, and alone takes it."""
    url: str
    """Base URL of that PoP's API."""
    ca: str
    """SHA-256 of the CA's certificate: another CA in the answer is refused."""
    expires_ms: int
    pop: str = ""
    """The id that the new PoP must take; empty = any that is free."""

    def text(self) -> str:
        """As one line."""
        document = json.dumps(asdict(self), separators=(",", ":")).encode()
        body = base64.urlsafe_b64encode(document).rstrip(b"=").decode()
        return f"{PREFIX}{body}.{_check(body)}"


def new_secret() -> str:
    """A secret of 256 bits."""
    return secrets.token_hex(SECRET_BYTES)


def parse_invitation(text: str) -> Invitation:
    """Inverse of `Invitation.text`. Raises BadToken."""
    body, _, check = text.strip().removeprefix(PREFIX).rpartition(".")
    if not text.strip().startswith(PREFIX) or check != _check(body):
        raise BadToken("this is no token of `edgeflow pops token`, or not all of it")
    try:
        return Invitation(**json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))
    except (ValueError, TypeError) as error:
        raise BadToken(f"the token cannot be read: {error}") from None


def fingerprint(certificate_pem: bytes) -> str:
    """Of a CA, as a token has it: SHA-256 of the PEM text without its line ends."""
    return hashlib.sha256(b"".join(certificate_pem.split())).hexdigest()


def seal(secret: str, id: str, direction: str, document: Mapping[str, Any]) -> str:
    """`document` so that only the holder of the token reads it. `direction`: "question" or "answer"."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    data = json.dumps(document, sort_keys=True).encode()
    sealed = AESGCM(_key(secret, direction)).encrypt(nonce, data, id.encode())
    return base64.b64encode(nonce + sealed).decode()


def unseal(secret: str, id: str, direction: str, sealed: str) -> dict[str, Any]:
    """Inverse of `seal`. Raises BadToken when the other side has another secret, or somebody changed it."""
    try:
        data = base64.b64decode(sealed, validate=True)
        document = json.loads(
            AESGCM(_key(secret, direction)).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], id.encode())
        )
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except (InvalidTag, ValueError):
        raise BadToken(f"the {direction} was not sealed with the secret of this token") from None
    return document


def _key(secret: str, direction: str) -> bytes:
    return hashlib.sha256(f"edgeflow join {direction} {secret}".encode()).digest()


def _check(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]
