"""Writes as JSON: one operation on a counter, a set or a map, and a batch of several writes.

What it is: the schemas of the request bodies, and how they become writes of the store.
What it is not: what a write does, or its limits (edgeflow.store.values).
What must stay true: what is not understood is refused by the name of its field, before anything is written.
"""

import base64
import binascii
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeflow.api.bodies import parse_json
from edgeflow.api.problems import BadParameter
from edgeflow.api.times import parse_duration_s
from edgeflow.core.channels import check_key
from edgeflow.store.records import Delete, Increment, MapPut, MapRemove, Put, SetAdd, SetRemove, Write

MAX_WRITES = 1000


class Operation(StrEnum):
    """What can be done with a counter, a set and a map."""

    INCREMENT = "increment"
    ADD = "add"
    REMOVE = "remove"
    SET = "set"
    UNSET = "unset"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Elements = Annotated[list[str], Field(min_length=1, max_length=10_000)]


class Data64(_Strict):
    """Bytes in JSON."""

    data_base64: str


class IncrementBody(_Strict):
    """How much a counter grows; negative: shrinks."""

    by: int = 1


class ElementsBody(_Strict):
    """Elements of a set."""

    elements: Elements


class SetFieldsBody(_Strict):
    """Fields of a map with their new content."""

    fields: dict[str, str | Data64] = Field(min_length=1, max_length=10_000)
    content_type: str | None = None


class UnsetFieldsBody(_Strict):
    """Names of fields of a map."""

    fields: Elements


class PutWrite(_Strict):
    """A value. Exactly one of `data` (text), `json` and `data_base64`."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    op: Literal["put"]
    key: str
    data: str | None = None
    document: Any = Field(default=None, alias="json")
    data_base64: str | None = None
    content_type: str | None = None
    ttl: str | None = None
    if_version: str | None = None
    if_absent: bool = False

    def write(self) -> Write:
        """The write of the store."""
        given = [name for name in ("data", "document", "data_base64") if name in self.model_fields_set]
        if len(given) != 1:
            raise BadParameter(f"the put of {self.key[:80]!r} needs exactly one of data, json and data_base64")
        content_type = self.content_type
        if self.data_base64 is not None:
            data = _decode(self.data_base64, self.key)
        elif self.data is not None:
            data = self.data.encode()
            content_type = content_type or "text/plain; charset=utf-8"
        else:
            data = json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode()
            content_type = content_type or "application/json"
        return Put(
            check_key(self.key), data, content_type=content_type, ttl_ms=parse_ttl_ms(self.ttl), if_version=self.if_version, if_absent=self.if_absent
        )  # fmt: skip


class DeleteWrite(_Strict):
    """Delete what is under a key; `missing_ok`: nothing there is no failure."""

    op: Literal["delete"]
    key: str
    if_version: str | None = None
    missing_ok: bool = False

    def write(self) -> Write:
        """The write of the store."""
        return Delete(check_key(self.key), self.if_version, self.missing_ok)


class IncrementWrite(IncrementBody):
    """Grow a counter."""

    op: Literal["increment"]
    key: str

    def write(self) -> Write:
        """The write of the store."""
        return Increment(check_key(self.key), self.by)


class ElementsWrite(ElementsBody):
    """Add to, or remove from, a set."""

    op: Literal["add", "remove"]
    key: str

    def write(self) -> Write:
        """The write of the store."""
        kind = SetAdd if self.op == "add" else SetRemove
        return kind(check_key(self.key), tuple(self.elements))


class SetFieldsWrite(SetFieldsBody):
    """Write fields of a map."""

    op: Literal["set"]
    key: str

    def write(self) -> Write:
        """The write of the store."""
        return MapPut(check_key(self.key), _fields(self, self.key), self.content_type)


class UnsetFieldsWrite(UnsetFieldsBody):
    """Remove fields of a map."""

    op: Literal["unset"]
    key: str

    def write(self) -> Write:
        """The write of the store."""
        return MapRemove(check_key(self.key), tuple(self.fields))


AnyWrite = Annotated[
    PutWrite | DeleteWrite | IncrementWrite | ElementsWrite | SetFieldsWrite | UnsetFieldsWrite,
    Field(discriminator="op"),
]


class Batch(_Strict):
    """Writes that happen together or not at all. A key may occur once (several increments or set and map operations of one key add up)."""

    writes: list[AnyWrite] = Field(min_length=1, max_length=MAX_WRITES)

    def writes_of(self) -> list[Write]:
        """The writes of the store. Raises BadName, BadParameter."""
        return [one.write() for one in self.writes]


def parse_operation(op: Operation, key: str, body: bytes) -> Write:
    """The write of one operation. Raises BadRequest for what is not JSON, BadParameter that names the field that is wrong."""
    if op is Operation.INCREMENT:
        return Increment(key, parse_json(IncrementBody, body or b"{}").by)
    if op is Operation.ADD:
        return SetAdd(key, tuple(parse_json(ElementsBody, body).elements))
    if op is Operation.REMOVE:
        return SetRemove(key, tuple(parse_json(ElementsBody, body).elements))
    if op is Operation.UNSET:
        return MapRemove(key, tuple(parse_json(UnsetFieldsBody, body).fields))
    fields = parse_json(SetFieldsBody, body)
    return MapPut(key, _fields(fields, key), fields.content_type)


def parse_ttl_ms(text: str | None) -> int | None:
    """Milliseconds of a `ttl`. Raises BadParameter for what is no duration, or not positive."""
    if text is None:
        return None
    ttl_ms = round(parse_duration_s(text, "ttl") * 1000)
    if ttl_ms < 1:
        raise BadParameter("ttl: a value lives for 1 ms at least")
    return ttl_ms


def _fields(body: SetFieldsBody, key: str) -> dict[str, bytes]:
    return {
        name: _decode(value.data_base64, f"{key} {name}") if isinstance(value, Data64) else value.encode()
        for name, value in body.fields.items()
    }


def _decode(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadParameter(f"data_base64 of {what[:80]!r} is not base64") from None


def inline(schema: Any, known: dict[str, Any] | None = None) -> Any:
    """A JSON schema with its definitions in their places, as a request body in the API's description needs it."""
    if isinstance(schema, list):
        return [inline(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = schema.get("$defs", known) or {}
    if "$ref" in schema:
        return inline(known[schema["$ref"].rpartition("/")[2]], known)
    return {name: inline(value, known) for name, value in schema.items() if name not in ("$defs", "discriminator")}


def _body(*models: type[BaseModel]) -> dict[str, Any]:
    schemas = [inline(model.model_json_schema()) for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


BATCH_BODY = _body(Batch)
OPERATION_BODY = _body(IncrementBody, ElementsBody, SetFieldsBody, UnsetFieldsBody)
