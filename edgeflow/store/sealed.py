"""Secrets at rest: values of the system namespace that only PoPs of this cluster can open.

What it is: `Sealer` (a text and its place in, a sealed document out, and back) and `SecretBook` (set, remove, list, read).
What it is not: protection from a PoP: each holds the key, and whoever reads that PoP's files as its account or as root opens everything. What is protected
is what lies about or travels: the append-only file, logs and snapshots of Redis, their backups, and whoever may read `system/` over the API.
What must stay true: a sealed value opens only under the namespace and name it was made for; nothing of a secret is in a message, a log line or a repr.

AES-256-GCM from `cryptography`, a new random nonce for each value, the place as associated data. The key of the cipher comes from the cluster's key
file by HKDF-SHA256. Two writes of the same secret differ.
"""

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import structlog

from edgeflow.errors import NoSecretsHere, SecretMissing

log = structlog.get_logger(__name__)

PREFIX = "secrets/"
MIN_KEY_CHARS = 32
_NONCE_BYTES = 12


class _Info(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def version(self) -> str: ...


class _Value(Protocol):
    @property
    def data(self) -> bytes: ...
    @property
    def version(self) -> str: ...


class SystemPort(Protocol):
    """What is used of the system namespace."""

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> Sequence[_Info]: ...
    def get(self, key: str) -> _Value | None: ...
    def put(self, key: str, data: bytes, *, content_type: str | None = None) -> Any: ...
    def delete(self, key: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret, without its content."""

    name: str
    version: str


class Sealer:
    """Seals and opens with the cluster's key."""

    def __init__(self, key: str, cluster: str) -> None:
        self._cluster = cluster
        self._cluster_key = key

    # Made when there is a secret: a PoP that has none does not load the library (7 MiB) for it.

    @cached_property
    def _key(self) -> bytes:
        return _derive(self._cluster_key, b"edgeflow secrets 1")

    @cached_property
    def key_id(self) -> str:
        """Names the key without saying anything about it."""
        return _derive(self._cluster_key, b"edgeflow secrets key id")[:4].hex()

    @classmethod
    def load(cls, key_file: Path | None, cluster: str) -> "Sealer | None":
        """From the file that the settings name; None when they name none, or it holds no key: then secrets are refused, and the rest goes on."""
        if key_file is None:
            return None
        try:
            key = key_file.read_text().strip()
        except OSError as error:
            log.error("secrets_key_not_readable", file=str(key_file), reason=str(error))
            return None
        if len(key) < MIN_KEY_CHARS:
            log.error("secrets_key_too_short", file=str(key_file), least_chars=MIN_KEY_CHARS)
            return None
        return cls(key, cluster)

    def seal(self, namespace: str, name: str, data: bytes) -> bytes:
        """The document that is kept in place of `data`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._key).encrypt(nonce, data, self._place(namespace, name))
        document = {"v": 1, "key": self.key_id, "nonce": _text(nonce), "data": _text(sealed)}
        return json.dumps(document).encode()

    def open(self, namespace: str, name: str, document: bytes) -> bytes:
        """Inverse of `seal`. Raises NoSecretsHere."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        what = f"the secret {namespace}/{name}"
        try:
            fields = json.loads(document)
            key_id, nonce, sealed = fields["key"], base64.b64decode(fields["nonce"]), base64.b64decode(fields["data"])
        except (ValueError, KeyError, TypeError):
            raise NoSecretsHere(f"{what} is damaged") from None
        if key_id != self.key_id:
            raise NoSecretsHere(f"{what} was sealed with another key than this PoP has")
        try:
            return AESGCM(self._key).decrypt(nonce, sealed, self._place(namespace, name))
        except (InvalidTag, ValueError):
            raise NoSecretsHere(f"{what} is damaged, or was sealed under another name") from None

    def _place(self, namespace: str, name: str) -> bytes:
        return f"{self._cluster}/{namespace}/{name}".encode()


class SecretBook:
    """The secrets of all namespaces, as this PoP has them."""

    def __init__(self, system: Callable[[], SystemPort], sealer: Sealer | None) -> None:
        """`system` gives the system namespace."""
        self._system = system
        self._sealer = sealer

    def set(self, namespace: str, name: str, data: bytes) -> str:
        """Keep a secret, in place of the one it was; its version."""
        document = self._sealed_by().seal(namespace, name, data)
        receipt = self._system().put(_key(namespace, name), document, content_type="application/json")
        return str(receipt.version)

    def remove(self, namespace: str, name: str) -> bool:
        """Forget a secret; False when there was none."""
        system = self._system()
        if system.get(_key(namespace, name)) is None:
            return False
        system.delete(_key(namespace, name))
        return True

    def list(self, namespace: str) -> Sequence[Secret]:
        """The secrets of a namespace, by name."""
        prefix, after, found = _key(namespace, ""), "", []
        system = self._system()
        while page := system.list(prefix, after=after, limit=500):
            found += [Secret(info.key.removeprefix(prefix), info.version) for info in page]
            after = page[-1].key
            if len(page) < 500:
                break
        return found

    def read(self, namespace: str, names: Sequence[str]) -> Mapping[str, tuple[str, bytes]]:
        """(version, content) of each. Raises SecretMissing naming those that are not set, NoSecretsHere."""
        sealer = self._sealed_by()
        values = {name: self._system().get(_key(namespace, name)) for name in names}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise SecretMissing(
                f"the secret {', '.join(f'{namespace}/{name}' for name in missing)} is not set",
                hint=f"Set it with `edgeflow secret set {namespace}/{missing[0]}`; the function starts by itself then.",
            )
        return {
            name: (value.version, sealer.open(namespace, name, value.data))
            for name, value in values.items()
            if value is not None
        }

    def _sealed_by(self) -> Sealer:
        if self._sealer is None:
            raise NoSecretsHere()
        return self._sealer


def _key(namespace: str, name: str) -> str:
    return f"{PREFIX}{namespace}/{name}"


def _derive(key: str, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(key.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
