"""Operations on values that another PoP asked this one, their home, to carry out.

What it is: the list of operations and how each is called.
What it is not: who is home of what, or whether this PoP still is: that is checked where it cannot change in between, by the store.
What must stay true: an operation that is not listed is refused by name; a write carries the id of whoever asked first, so that asking twice writes once.
"""

from collections.abc import Callable, Mapping
from typing import Any

from edgeflow.cluster import linkproto
from edgeflow.core.events import BlobRef
from edgeflow.errors import BadRequest, EdgeflowError

Body = dict[str, Any]


def _known(args: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: args[name] for name in names if args.get(name) is not None}


def _key(args: Mapping[str, Any]) -> str:
    key = args.get("key")
    if not isinstance(key, str):
        raise BadRequest("an operation at the home PoP names no key")
    return key


def _info(value: Any) -> Body | None:
    if value is None:
        return None
    return {
        "key": value.key, "version": value.version, "size": value.size, "content_type": value.content_type, "digest": value.digest,
    }  # fmt: skip


def _put(handle: Any, args: Mapping[str, Any]) -> Body:
    known = _known(args, "content_type", "if_version", "if_absent", "ttl_ms", "id")
    if args.get("digest") is not None:
        known["ref"] = BlobRef(str(args["digest"]), int(args["size"]))
    receipt = handle.put(_key(args), args.get("data"), **known)
    return {"receipt": receipt.to_json()}


def _delete(handle: Any, args: Mapping[str, Any]) -> Body:
    return {"receipt": handle.delete(_key(args), **_known(args, "if_version", "id")).to_json()}


def _head(handle: Any, args: Mapping[str, Any]) -> Body:
    return {"value": _info(handle.head(_key(args)))}


def _get(handle: Any, args: Mapping[str, Any]) -> Body:
    """With its body when that fits into an answer; else whoever asked fetches the digest."""
    key = _key(args)
    found = handle.head(key)
    info = _info(found)
    if info is not None and found.size <= linkproto.CALL_BYTES // 2:
        value = handle.get(key, **_known(args, "version"))
        info = _info(value)
        if info is not None:
            info["data"] = value.data
    return {"value": info}


OPERATIONS: dict[str, Callable[[Any, Mapping[str, Any]], Body]] = {
    "put": _put,
    "delete": _delete,
    "head": _head,
    "get": _get,
}


def execute(handle: Any, op: object, args: Mapping[str, Any]) -> Body:
    """Carries out one operation. Raises what the store raises, and BadRequest when it is not known or its arguments are not right."""
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    if operation is None:
        raise BadRequest(f"{str(op)[:40]!r} is not an operation on values; known are {', '.join(sorted(OPERATIONS))}")
    try:
        return operation(handle, args)
    except EdgeflowError:
        raise
    except (TypeError, KeyError, ValueError) as error:
        raise BadRequest(f"the arguments of {op!r} are not right: {error}") from None
