"""Counters, sets and maps as JSON: the form in which every door shows them.

What must stay true: bytes that are not UTF-8 text are told apart from text, and nothing is lost.
"""

import base64
import json
from typing import Any


def typed_json(kind: str, content: Any) -> bytes:
    """A counter as a number, a set as a list, a map as an object: text as it is, other bytes as {"data_base64": ...}."""
    if kind == "counter":
        return str(content).encode()
    document = {name: text_of(data) for name, data in content.items()} if kind == "map" else content
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def text_of(data: bytes) -> str | dict[str, str]:
    """Bytes in JSON."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}
