"""The client of the commands: what an operator asks of a PoP beyond what applications do.

What it is: `edgeflow.sdk.Client` with the routes for invocations, dead letters, replays, quotas, secrets, images and policies (docs/api.md).
What it is not: part of the SDK; documents are as the API gives them.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from edgeflow.errors import NotFound
from edgeflow.sdk.client import Client

Document = dict[str, Any]
PAGE = 1000


class Operator(Client):
    """One PoP's API for commands. Raises EdgeflowError and its subclasses only."""

    def remove_functions(self, namespace: str) -> None:
        """Remove the manifest of a namespace; its functions stop. Nothing happens when there is none."""
        try:
            self._call("DELETE", f"/v1/functions/{_part(namespace)}")
        except NotFound:
            pass

    def pop(self, name: str) -> Document:
        """One PoP as this one sees it."""
        return self._document("GET", f"/v1/pops/{_part(name)}")

    def make_join_token(self, wish: Mapping[str, Any]) -> Document:
        """A token with which one PoP may join. A call that may have made one is not repeated."""
        return self._document(
            "POST", "/v1/pops/tokens", content=json.dumps(dict(wish)).encode(), headers={"content-type": "application/json"}, is_repeatable=False
        )  # fmt: skip

    def join_tokens(self) -> list[Document]:
        """The tokens that this PoP made, without their secrets."""
        items: list[Document] = self._document("GET", "/v1/pops/tokens")["items"]
        return items

    def wish_of_pop(self, name: str, wish: str) -> Document:
        """`drain`, `undrain` or `leave` a PoP; the member as it is then."""
        return self._document("POST", f"/v1/pops/{_part(name)}/{wish}")

    def route(self, lat: float | None = None, lon: float | None = None) -> Document:
        """The PoPs ranked for a client at a place, or near this PoP."""
        given = {"lat": lat, "lon": lon}
        params = {name: repr(value) for name, value in given.items() if value is not None}
        document: Document = self._call("GET", "/v1/route", params=params).json()
        return document

    def instances(self, namespace: str | None = None) -> list[Document]:
        """The instances at this PoP and what they use."""
        items: list[Document] = self._call("GET", "/v1/instances", params=_given({"namespace": namespace})).json()[
            "items"
        ]
        return items

    # -- invocations ---------------------------------------------------------------------------------------------------

    def call_function(
        self, namespace: str, name: str, body: bytes, headers: Mapping[str, str], timeout: str
    ) -> httpx.Response:
        """Invoke a function and wait. `headers` hold the event's id, so that a call which was interrupted can be repeated."""
        return self._call(
            "POST", f"/v1/functions/{_part(namespace)}/{_part(name)}/invoke", content=body, headers=headers, params={"timeout": timeout}
        )  # fmt: skip

    def invocation(self, namespace: str, id: str) -> Document | None:
        """An invocation as this PoP knows it, or None."""
        return self._found(f"/v1/invocations/{_part(namespace)}/{_part(id)}")

    # -- revisions -----------------------------------------------------------------------------------------------------

    def history(self, namespace: str, name: str) -> Document:
        """The revisions of a function, the newest first."""
        return self._document("GET", f"/v1/functions/{_part(namespace)}/{_part(name)}/revisions")

    def rollback(self, namespace: str, name: str, to: str | None, by: str) -> Document:
        """Apply a function as it was: {revision, before}."""
        return self._document(
            "POST", f"/v1/functions/{_part(namespace)}/{_part(name)}/rollback", content=json.dumps({"to": to}).encode(),
            headers={"content-type": "application/json", "Edgeflow-By": header_value(by)}, is_repeatable=False,
        )  # fmt: skip

    # -- dead letters --------------------------------------------------------------------------------------------------

    def letters(self, namespace: str, **filters: str | None) -> Iterator[Document]:
        """The dead letters that match (function, reason, before_ms), oldest first, without their inputs."""
        after: str | None = ""
        while after is not None:
            params = _given({**filters, "namespace": namespace, "after": after, "limit": str(PAGE)})
            page = self._call("GET", "/v1/dead-letters", params=params).json()
            yield from page["items"]
            after = page["next"]

    def redrive(self, namespace: str, id: str) -> Document:
        """Try one dead letter again: {id, as}."""
        return self._document("POST", f"/v1/dead-letters/{_part(namespace)}/{_part(id)}/redrive", is_repeatable=False)

    def redrive_some(self, namespace: str, after: str, **filters: str | None) -> Document:
        """Try some that match again: {redriven, failed, next, retry_after_s}. Repeating it is safe: what was redriven is gone."""
        path = f"/v1/dead-letters/{_part(namespace)}/redrive"
        return self._document("POST", path, params=_given({**filters, "after": after}))

    def purge(self, namespace: str, id: str) -> bool:
        """Forget one dead letter; False when there was none."""
        try:
            self._call("DELETE", f"/v1/dead-letters/{_part(namespace)}/{_part(id)}")
        except NotFound:
            return False
        return True

    def purge_some(self, namespace: str, after: str, **filters: str | None) -> Document:
        """Forget some that match: {purged, next}."""
        path = f"/v1/dead-letters/{_part(namespace)}"
        return self._document("DELETE", path, params=_given({**filters, "after": after}))

    # -- replays -------------------------------------------------------------------------------------------------------

    def start_replay(self, namespace: str, wish: Mapping[str, Any]) -> Document:
        """Start a replay at this PoP. A call that may have started one is not repeated."""
        return self._document(
            "POST", f"/v1/replays/{_part(namespace)}", content=json.dumps(dict(wish)).encode(),
            headers={"content-type": "application/json"}, is_repeatable=False,
        )  # fmt: skip

    def replays(self, namespace: str) -> list[Document]:
        """The replays of a namespace at this PoP, the newest first."""
        items: list[Document] = self._document("GET", f"/v1/replays/{_part(namespace)}")["items"]
        return items

    def replay(self, namespace: str, id: str) -> Document | None:
        """One replay, or None."""
        return self._found(f"/v1/replays/{_part(namespace)}/{_part(id)}")

    def cancel_replay(self, namespace: str, id: str) -> bool:
        """End a replay; False when there is none."""
        try:
            self._call("DELETE", f"/v1/replays/{_part(namespace)}/{_part(id)}")
        except NotFound:
            return False
        return True

    def replay_diff(self, namespace: str, id: str) -> Iterator[Document]:
        """What a shadow gave beside what was recorded, by invocation."""
        after: str | None = ""
        while after is not None:
            params = _given({"after": after, "limit": "100"})
            page = self._document("GET", f"/v1/replays/{_part(namespace)}/{_part(id)}/diff", params=params)
            yield from page["items"]
            after = page["next"]

    # -- quotas --------------------------------------------------------------------------------------------------------

    def quota(self, namespace: str) -> Document | None:
        """The quota of a namespace, or None."""
        return self._found(f"/v1/namespaces/{_part(namespace)}/quota")

    def set_quota(self, namespace: str, quota: Mapping[str, float]) -> Document:
        """Set the quota of a namespace."""
        return self._document(
            "PUT", f"/v1/namespaces/{_part(namespace)}/quota", content=json.dumps(dict(quota)).encode(),
            headers={"content-type": "application/json"},
        )  # fmt: skip

    def clear_quota(self, namespace: str) -> None:
        """Remove the quota of a namespace. Raises NotFound."""
        self._call("DELETE", f"/v1/namespaces/{_part(namespace)}/quota")

    # -- what was applied -----------------------------------------------------------------------------------------------

    def manifest(self, namespace: str) -> Document | None:
        """The resolved manifest of a namespace, or None."""
        return self._found(f"/v1/functions/{_part(namespace)}")

    def sets(self) -> list[Document]:
        """The sets: {name, parts, at_ms, by, source}."""
        items: list[Document] = self._document("GET", "/v1/sets")["items"]
        return items

    def set_record(self, name: str) -> tuple[Document, str] | None:
        """One set and its ETag, or None."""
        try:
            answer = self._call("GET", f"/v1/sets/{_part(name)}")
        except NotFound:
            return None
        return answer.json(), answer.headers["etag"]

    def put_set(self, name: str, record: Mapping[str, Any], tag: str | None, by: str) -> str:
        """Say what a set holds, if its record still has that ETag (None: if there is none); its new ETag. Raises VersionMismatch."""
        headers = {
            "content-type": "application/json",
            "Edgeflow-By": header_value(by),
            **({"if-match": tag} if tag else {}),
        }
        answer = self._call(
            "PUT", f"/v1/sets/{_part(name)}", content=json.dumps(dict(record)).encode(), headers=headers
        )
        return str(answer.headers["etag"])

    def forget_set(self, name: str) -> None:
        """Forget a set; what it holds stays. Raises NotFound."""
        self._call("DELETE", f"/v1/sets/{_part(name)}")

    # -- images --------------------------------------------------------------------------------------------------------

    def push_image(self, chunks: Callable[[], Iterator[bytes]], names: Sequence[str], size: int | None) -> Document:
        """Store the image of an archive; `chunks` gives it from its beginning each time it is called, `size` is how long it is, if that is known."""
        headers = {"content-type": "application/x-tar", **({} if size is None else {"content-length": str(size)})}
        query = "&".join(f"name={_part(name)}" for name in names)
        return self._document(
            "POST", f"/v1/images?{query}", content=_Again(chunks), headers=headers, is_repeatable=False
        )  # fmt: skip

    def images(self) -> list[Document]:
        """The images of the cluster, the one that was pushed last first."""
        items: list[Document] = self._document("GET", "/v1/images")["items"]
        return items

    def image(self, id: str) -> Document | None:
        """One image by its id, or None."""
        return self._found(f"/v1/images/{_part(id)}")

    def load_image(self, id: str) -> Document:
        """Have an image at this PoP, and on its engine if it has one."""
        return self._document("POST", f"/v1/images/{_part(id)}/load")

    def remove_image(self, id: str) -> None:
        """Forget an image that nothing uses. Raises NotFound."""
        self._call("DELETE", f"/v1/images/{_part(id)}")

    # -- secrets -------------------------------------------------------------------------------------------------------

    def secrets(self, namespace: str) -> list[Document]:
        """The secrets of a namespace: name, version, which functions use it. Values do not come back."""
        items: list[Document] = self._document("GET", f"/v1/secrets/{_part(namespace)}")["items"]
        return items

    def set_secret(self, namespace: str, name: str, value: bytes) -> Document:
        """Keep a secret, in place of the one it was: {namespace, name, version}."""
        return self._document(
            "PUT", f"/v1/secrets/{_part(namespace)}/{_part(name)}", content=value, headers={"content-type": "application/octet-stream"}
        )  # fmt: skip

    def remove_secret(self, namespace: str, name: str) -> None:
        """Forget a secret. Raises NotFound."""
        self._call("DELETE", f"/v1/secrets/{_part(namespace)}/{_part(name)}")

    # -- policies ------------------------------------------------------------------------------------------------------

    def policies(self, namespace: str, *, key: str | None = None) -> Document:
        """The rules of a namespace, or what holds for one key: {namespace, term, rules, version}."""
        params = {} if key is None else {"key": key}
        return self._document("GET", f"/v1/policies/{_part(namespace)}", params=params)

    def set_policies(self, namespace: str, rules: list[Document], version: str | None) -> Document:
        """Set all rules, if the document still has that version."""
        headers = {"content-type": "application/json"}
        if version is not None:
            headers["if-match"] = f'"{version}"'
        plain = [{name: value for name, value in rule.items() if name != "term"} for rule in rules]
        content = json.dumps({"rules": plain}).encode()
        return self._document("PUT", f"/v1/policies/{_part(namespace)}", content=content, headers=headers)

    def move_home(self, namespace: str, prefix: str, to: str, *, force: bool, wait_s: float | None) -> Document:
        """Hand the home of a prefix over: {prefix, home, term, before, forced, lost}. Asked again, it goes on."""
        content = json.dumps({"prefix": prefix, "to": to, "force": force}).encode()
        params = {} if wait_s is None else {"wait": f"{max(1, round(wait_s * 1000))}ms"}
        return self._document(
            "POST", f"/v1/policies/{_part(namespace)}/move", content=content, headers={"content-type": "application/json"}, params=params,
            timeout_s=(wait_s or 30.0) + 30.0,
        )  # fmt: skip

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _document(self, method: str, path: str, **options: Any) -> Document:
        document: Document = self._call(method, path, **options).json()
        return document

    def _found(self, path: str) -> Document | None:
        try:
            return self._document("GET", path)
        except NotFound:
            return None


class _Again:
    """A body that can be sent again from its beginning."""

    def __init__(self, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks()


def new_event_id() -> str:
    """An id for an event that a command makes."""
    return uuid.uuid4().hex


def header_value(value: str) -> str:
    """An attribute as a header of the CloudEvents HTTP binding."""
    return quote(value, safe="!#$&'()*+,-./:;<=>?@[]^_`{|}~")


def _part(name: str) -> str:
    return quote(name, safe="")


def _given(params: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}
