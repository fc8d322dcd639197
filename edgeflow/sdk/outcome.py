"""What one attempt will commit, and what it may ask of the agent.

What it is: `Outcome`, which collects outputs, values, counters and the state; the form of bodies; and `Port`, which connection.py implements on the
instance protocol and testing.py in memory.
What it is not: what a handler sees (context.py, ekv.py).
What must stay true: nothing leaves before the commit, except large bodies, as blobs that nobody refers to yet.
"""

import hashlib
import json
from typing import Any, Protocol

from edgeflow.core.channels import check_key
from edgeflow.errors import BadName, BadOutput
from edgeflow.sdk.inputs import MAX_VALUE_BYTES, Bodies
from edgeflow.sdk.state import State, type_name

INLINE_BYTES = 4096
TEXT_TYPE = "text/plain; charset=utf-8"
JSON_TYPE = "application/json"

Frame = dict[str, Any]


class Port(Bodies, Protocol):
    """What an attempt may ask of the agent. Every method raises EdgeflowError when the agent refuses."""

    def read(self, request: Frame) -> Frame:
        """The reply to a `get`, `head`, `versions` or `list` request of the instance protocol."""

    def session(self, token: str) -> str:
        """Returns when this PoP has all that a session token names (none: at once), with a token that names what it shows from now on."""

    def store_blob(self, digest: str, data: bytes) -> None:
        """Sends a body that the commit will refer to."""


def encode_body(data: Any, what: str) -> tuple[bytes, str | None]:
    """(body, media type or None) of bytes, str, or anything the json module can write. Raises BadOutput that begins with `what`."""
    content_type: str | None = None
    if isinstance(data, bytes):
        body = data
    elif isinstance(data, (bytearray, memoryview)):
        body = bytes(data)
    else:
        try:
            if isinstance(data, str):
                body, content_type = data.encode(), TEXT_TYPE
            else:
                text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
                body, content_type = text.encode(), JSON_TYPE
        except (TypeError, ValueError, RecursionError) as error:
            raise BadOutput(
                f"{what} a {type_name(data)}, which is neither bytes nor str nor JSON-able: {error}",
                hint="Return bytes (for arrays: array.tobytes() or an encoded picture), str, or plain dicts, lists and numbers (.tolist(), float()).",
            ) from None
    if len(body) > MAX_VALUE_BYTES:
        raise BadOutput(
            f"{what} {len(body)} bytes; the limit is {MAX_VALUE_BYTES}", hint="Split the data into several events."
        )
    return body, content_type


def _plain(value: Any) -> Any:
    if isinstance(value, State):
        return dict(value)
    raise TypeError(f"a {type_name(value)} is not JSON-able")


class Later(Exception):
    """Nothing can be done for this invocation now: it is given back without blame, and nothing is claimed for `after_s` seconds."""

    def __init__(self, after_s: float, why: str) -> None:
        super().__init__(why)
        self.after_s = after_s


class Outcome:
    """What an attempt will commit: outputs in the order they were emitted, the last write of each key, the sum of each counter, operations on sets and maps, the state."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._sent: set[str] = set()
        self.closed = False
        self.outputs: list[Frame] = []
        self.values: dict[str, Frame] = {}
        self.increments: dict[str, int] = {}
        self.ops: dict[str, list[Frame]] = {}
        self.state: Frame | None = None

    def check_write(self, key: str) -> None:
        """Whether this attempt may write this key now. Raises BadName for a reserved key, BadOutput when the handler has returned."""
        if self.closed:
            raise too_late()
        if check_key(key).startswith("_"):
            raise BadName(f"key {key!r} is reserved", hint="Keys that begin with _ belong to edgeflow.")

    def commit_fields(self) -> Frame:
        """The parts of a `commit`; what is as it was is left out."""
        fields: Frame = {
            "outputs": self.outputs,
            "values": [{name: part for name, part in one.items() if name != "_body"} for one in self.values.values()],
        }
        if self.state is not None:
            fields["state"] = self.state
        if self.ops:
            fields["ops"] = [op for ops in self.ops.values() for op in ops]
        if self.increments:
            fields["increments"] = [{"key": key, "by": by} for key, by in self.increments.items() if by]
        return fields

    def body(self, data: bytes) -> Frame:
        """The fields that carry a body: inline, or as a reference to a blob that is sent now."""
        if len(data) <= INLINE_BYTES:
            return {"data": data}
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if digest not in self._sent:
            self._port.store_blob(digest, data)
            self._sent.add(digest)
        return {"digest": digest, "size": len(data)}


def too_late() -> BadOutput:
    """The error of a use of `ctx` after the handler."""
    return BadOutput(
        "ctx was used after the handler had returned", hint="Join the handler's own threads before it returns."
    )
