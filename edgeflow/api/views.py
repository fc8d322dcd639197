"""JSON views of the store's records: the schemas that several resources share.

What must stay true: a body is shown only when it is small; a larger one is a link.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgeflow.core.events import Event
from edgeflow.store.records import Input, ValueInfo

PREVIEW_BYTES = 4096


class ReceiptView(BaseModel):
    """What an acknowledgement says."""

    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(
        alias="class",
        description="`durable`: in this PoP's log, on disk. `waiting`: kept, until the value it refers to is readable here",
    )
    origin: str = Field(description="PoP where it entered")
    epoch: int = Field(description="Epoch of that PoP's log")
    seq: int = Field(description="Position in that log; 0 while waiting")
    id: str = Field(description="Id of the event, empty for a value")
    version: str | None = Field(description="Version of the value that was written with it, its ETag")
    duplicate: bool = Field(
        default=False, description="The same source and id was accepted before; this is its receipt"
    )


class ValueView(BaseModel):
    """One EKV entry without its body."""

    key: str
    version: str
    size: int = Field(description="Bytes; elements of a set, fields of a map")
    content_type: str | None
    kind: str = Field(description="`register` (a plain value), `counter`, `set` or `map`")
    modified_ms: int = Field(description="Time of the write, ms since 1970; 0 for counters and sets")
    expires_ms: int | None = Field(description="When it is no more, ms since 1970; null: never")
    origin: str = Field(description="PoP that wrote it; empty where several may have")


class InputView(BaseModel):
    """One input of an invocation."""

    name: str
    event: dict[str, Any] = Field(description="Structured CloudEvents JSON; bodies over 4 KiB as a dataref URL")


def value_view(info: ValueInfo) -> ValueView:
    """The view of one EKV entry."""
    return ValueView(
        key=info.key, version=info.version, size=info.size, content_type=info.content_type, kind=info.kind,
        modified_ms=info.modified_ms, expires_ms=info.expires_ms, origin=info.origin,
    )  # fmt: skip


def event_view(event: Event, blobs_url: str) -> dict[str, Any]:
    """Structured CloudEvents JSON of an event, its body inline only when it is in the event itself."""
    if event.ref is None:
        return event.to_cloudevent(event.data or b"")
    return event.to_cloudevent(None, url=f"{blobs_url}/{event.channel.partition('/')[0]}/{event.ref.digest}")


def input_view(item: Input, blobs_url: str) -> InputView:
    """The view of one input."""
    return InputView(name=item.name, event=event_view(item.event, blobs_url))
