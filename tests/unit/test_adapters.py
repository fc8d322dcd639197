"""Adapters of foreign programs without any program: what a request holds, what a response means, what a program may do to the store."""

import json
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any

import pytest

from edgeflow.core.ceheaders import BATCH, STRUCTURED, decode, encode
from edgeflow.core.events import make_event
from edgeflow.errors import BadOutput, BadRequest, NotFound, Reject, StaleAttempt
from edgeflow.runner import contracts, pairs
from edgeflow.sdk.adapters import answers, http, requests
from edgeflow.sdk.adapters.effects import Effects
from edgeflow.sdk.adapters.mqtt import LISTENING
from edgeflow.sdk.adapters.ports import free_port
from edgeflow.sdk.adapters.setting import VARIABLE, Setting
from edgeflow.sdk.context import Context, FunctionInfo
from edgeflow.sdk.ending import Stop
from edgeflow.sdk.inputs import Input
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import Later, Outcome
from edgeflow.sdk.stored import Value
from edgeflow.sdk.testing import _MemoryPort

PORT = _MemoryPort({"models/a": (b"model", "text/plain")})


def heard(name: str = "words", data: bytes = b"hello", **more: Any) -> Input:
    more = {"subject": "clip/1", "datacontenttype": "text/plain", "attributes": {"colour": "röt 5%"}, **more}
    event = make_event(f"app/{name}", data, id="e1", source="cam", now_ms=1_700_000_000_000, **more)
    return Input(name, event.at("la", 1, 9, 0, 3).encode_positioned(), PORT)


def context(
    *inputs: Input, publish: tuple[str, ...] = ("app/loud",), **more: Any
) -> tuple[Context, Outcome]:  # fmt: skip
    outcome = Outcome(PORT)
    info = FunctionInfo("app", "f", publish=publish, has_state=True, context={"model": "models/a"})
    values = {"model": Value("models/a", "7", data=b"weights", content_type="text/plain")}
    ctx = Context(
        info, PORT, outcome, invocation_id="9a", attempt=2, deadline_ms=1_700_000_030_000, inputs=inputs or (heard(),), context=values,
        log=Log({}), **more,
    )  # fmt: skip
    return ctx, outcome


# ------------------------------------------------------------------ requests


@pytest.mark.parametrize("text", ["plain", "röt 5%", 'a "b"', "日本", "\U0001f600", ""])
def test_header_values_survive(text: str) -> None:
    assert encode(text).isascii() and decode("ce-x", encode(text)) == text


def test_a_single_event_is_in_the_binary_mode() -> None:
    ctx, _ = context(key="clip/1")
    given = requests.content([heard()], joined=False)
    headers = requests.headers(given, ctx)
    assert given.body == b"hello"
    assert headers == {
        "ce-specversion": "1.0", "ce-id": "e1", "ce-source": "cam", "ce-type": "edgeflow.message", "ce-time": "2023-11-14T22:13:20.000Z",
        "ce-subject": "clip/1", "ce-origin": "la", "ce-epoch": "1", "ce-seq": "9", "ce-prev": "3", "ce-colour": "r%C3%B6t%205%25",
        "ce-channel": "app/words", "Content-Type": "text/plain", "Edgeflow-Invocation": "9a", "Edgeflow-Attempt": "2",
        "Edgeflow-Deadline": "2023-11-14T22:13:50.000Z", "Edgeflow-Key": "clip/1",
    }  # fmt: skip


def test_a_single_event_in_the_structured_mode() -> None:
    given = requests.content([heard()], joined=False, mode="structured")
    document = json.loads(given.body)
    assert given.content_type == STRUCTURED and document["data"] == "hello" and document["colour"] == "röt 5%"


def test_joined_events_are_a_batch_even_when_one_has_come() -> None:
    inputs = {"words": [heard(), heard(data=b"\xff")], "faces": heard("faces"), "late": None}
    given = requests.content(requests.events_of(inputs), joined=True, mode="binary")
    batch = json.loads(given.body)
    assert given.content_type == BATCH and [one["input"] for one in batch] == ["words", "words", "faces"]
    assert batch[1]["data_base64"] == "/w=="
    alone = requests.content(requests.events_of({"words": heard(), "faces": None}), joined=True)
    assert len(json.loads(alone.body)) == 1 and alone.content_type == BATCH


def test_a_window_is_told() -> None:
    ctx, _ = context(window=(1_700_000_000_000, 1_700_000_010_000))
    given = requests.content([heard()], joined=True)
    text = "2023-11-14T22:13:20.000Z/2023-11-14T22:13:30.000Z"
    assert requests.headers(given, ctx)["Edgeflow-Window"] == text
    assert requests.variables(given, ctx)["EDGEFLOW_WINDOW"] == text


def test_a_program_that_is_away_for_too_long_ends_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "AWAY_S", 0.0)
    stop = Stop()
    adapter = http.Http(Setting("http", http_port=free_port()), stop, lambda: (FunctionInfo("app", "f"), Log({})))
    for is_over in (False, True):
        with pytest.raises(Later, match="does not accept connections"):
            adapter._connected()
        assert stop.requested is is_over
    assert adapter.exit_status(0) == 1 and "has not accepted connections" in adapter.failed


def test_an_invocation_as_environment_variables() -> None:
    ctx, _ = context()
    found = requests.variables(requests.content([heard(attributes={"a": "b"})], joined=False), ctx)
    assert found["CE_SUBJECT"] == "clip/1" and found["CE_A"] == "b" and found["CE_DATACONTENTTYPE"] == "text/plain"
    assert found["EDGEFLOW_INVOCATION"] == "9a" and found["EDGEFLOW_DEADLINE"].endswith("Z")


# ------------------------------------------------------------------ answers


def settled(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", **more: Any) -> list[Any]:
    ctx, outcome = context(**more)
    publish = more.get("publish", ("app/loud",))
    answers.settle(ctx, publish, {"app/words"}, status, headers or {}, body)
    return outcome.outputs


def test_a_body_is_the_output() -> None:
    (output,) = settled(
        200,
        {"content-type": "text/html", "ce-subject": "other%20one", "ce-type": "t", "ce-id": "mine", "ce-mood": "good"},
        b"x",
    )
    assert (output["channel"], output["data"], output["datacontenttype"]) == ("app/loud", b"x", "text/html")
    assert (output["subject"], output["type"], output["attributes"]) == ("other one", "t", {"mood": "good"})
    (inherited,) = settled(200, {}, b"x")
    assert inherited["subject"] == "clip/1" and inherited["datacontenttype"] is None


@pytest.mark.parametrize(("status", "body"), [(204, b""), (200, b""), (202, b""), (205, b"x")])
def test_no_body_is_no_output(status: int, body: bytes) -> None:
    assert settled(status, {}, body) == []


def test_a_function_that_publishes_nothing_ignores_the_body() -> None:
    assert settled(200, {}, b"OK", publish=()) == []


def test_structured_and_batched_answers() -> None:
    one = {
        "specversion": "1.0",
        "type": "t",
        "subject": "s",
        "data": {"n": 1},
        "colour": "red",
        "id": "x",
        "source": "y",
    }
    (output,) = settled(200, {"content-type": STRUCTURED}, json.dumps(one).encode())
    assert output["data"] == b'{"n":1}' and output["datacontenttype"] == "application/json"
    assert output["subject"] == "s" and output["attributes"] == {"colour": "red"}
    several = [{**one, "channel": "app/a"}, {**one, "channel": "b", "data_base64": "/w==", "data": None}]
    outputs = settled(
        200, {"content-type": f"{BATCH}; charset=utf-8"}, json.dumps(several).encode(), publish=("app/a", "app/b")
    )
    assert [(one["channel"], one["data"]) for one in outputs] == [("app/a", b'{"n":1}'), ("app/b", b"\xff")]


def test_an_answer_that_repeats_its_input_goes_to_the_functions_own_channel() -> None:
    echo = {"specversion": "1.0", "type": "t", "channel": "app/words", "input": "words", "seq": 9, "data": 1}
    (output,) = settled(200, {"content-type": STRUCTURED}, json.dumps(echo).encode())
    assert output["channel"] == "app/loud" and output["attributes"] == {}


def test_a_header_names_one_of_several_channels() -> None:
    (output,) = settled(200, {"edgeflow-channel": "b"}, b"x", publish=("app/a", "app/b"))
    assert output["channel"] == "app/b"
    with pytest.raises(BadOutput, match="names no channel") as caught:
        settled(200, {}, b"x", publish=("app/a", "app/b"))
    assert "Edgeflow-Channel" in caught.value.hint


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"content-type": STRUCTURED}, b"{", "not JSON"),
        ({"content-type": STRUCTURED}, b"[]", "no event"),
        ({"content-type": BATCH}, b'{"a":1}', "no list of events"),
        ({"content-type": STRUCTURED}, b'{"data": 1}', "specversion"),
        ({"content-type": STRUCTURED}, b'{"specversion":"1.0","data_base64":"?"}', "base64"),
        ({"ce-subject": "%ff"}, b"x", "percent-encoded"),
        ({"edgeflow-channel": "secret"}, b"x", "publishes app/loud"),
    ],
)
def test_answers_that_cannot_be_published(headers: dict[str, str], body: bytes, words: str) -> None:
    with pytest.raises(BadOutput, match=words):
        settled(200, headers, body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Reject), (404, Reject), (301, Reject), (408, answers.ProgramFailed), (425, answers.ProgramFailed), (500, answers.ProgramFailed), (504, answers.ProgramFailed),
     (429, Later), (503, Later)],
)  # fmt: skip
def test_what_a_status_means(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"answered {status}: no such / thing"):
        settled(status, {}, b"no such\n\nthing\n")


@pytest.mark.parametrize(
    ("text", "wait_s"), [(None, 1.0), ("3", 3.0), ("0", 0.0), ("-1", 0.0), ("7200", 60.0), ("soon", 1.0), ("nan", 1.0)]
)
def test_how_much_later(text: str | None, wait_s: float) -> None:
    assert answers.later_s(text) == wait_s


def test_later_as_a_date() -> None:
    assert 8 < answers.later_s(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 10))) <= 10


# ------------------------------------------------------------------ the store


@pytest.fixture
def effects() -> Any:
    one = Effects()
    yield one
    one.close()


MINE = {"edgeflow-invocation": "9a"}


def test_what_a_program_does_is_part_of_its_commit(effects: Effects) -> None:
    ctx, outcome = context(
        state={"version": "1", "digest": None, "data": b'{"seen":1}', "content_type": "application/json"}
    )
    with effects.of(ctx, ("app/loud",)):
        put = effects.answer("PUT", "/ekv/a/b%20c?ttl_s=5", {**MINE, "content-type": "text/plain"}, b"v")
        assert put.status == 204
        assert effects.answer("GET", "/ekv/a/b%20c", MINE, b"").body == b"v"
        found = effects.answer("GET", "/ekv/models/a", MINE, b"")
        assert (found.body, found.content_type, found.headers) == (b"model", "text/plain", {"ETag": '"1"'})
        listed = json.loads(effects.answer("GET", "/ekv?prefix=a/", MINE, b"").body)
        assert listed == {"items": [{"key": "a/b c", "version": None, "size": 1}]}
        assert effects.answer("DELETE", "/ekv/old", MINE, b"").status == 204
        assert json.loads(effects.answer("GET", "/state", MINE, b"").body) == {"seen": 1}
        assert effects.answer("PUT", "/state", MINE, b'{"seen":2}').status == 204
        assert effects.answer("GET", "/context/model", MINE, b"").body == b"weights"
        assert effects.answer("POST", "/emit/loud", {**MINE, "content-type": "text/plain"}, b"x").status == 202
    ctx.end(None)
    fields = outcome.commit_fields()
    assert [(one["key"], one.get("ttl_ms"), one["delete"]) for one in fields["values"]] == [
        ("a/b c", 5000, False),
        ("old", None, True),
    ]
    assert json.loads(fields["state"]["data"]) == {"seen": 2}
    assert [(one["channel"], one["data"]) for one in fields["outputs"]] == [("app/loud", b"x")]


def test_a_foreign_or_ended_invocation_is_refused(effects: Effects) -> None:
    ctx, outcome = context()
    with effects.of(ctx, ()):
        with pytest.raises(BadRequest, match="Edgeflow-Invocation is missing"):
            effects.answer("PUT", "/ekv/a", {}, b"")
        with pytest.raises(StaleAttempt, match="'9b' does not run here"):
            effects.answer("PUT", "/ekv/a", {"edgeflow-invocation": "9b"}, b"")
    with pytest.raises(StaleAttempt):
        effects.answer("PUT", "/ekv/a", MINE, b"")
    assert outcome.values == {}


@pytest.mark.parametrize(
    ("method", "target", "body", "kind"),
    [
        ("GET", "/ekv/none", b"", NotFound), ("GET", "/nothing", b"", NotFound), ("GET", "/context/none", b"", NotFound),
        ("POST", "/ekv/a", b"", BadRequest), ("PUT", "/ekv/_secret", b"", BadRequest), ("PUT", "/state", b"[1]", BadRequest),
        ("PUT", "/state", b"{", BadRequest), ("POST", "/emit/elsewhere", b"x", BadOutput), ("PUT", "/ekv/a?ttl_s=x", b"", BadRequest),
        ("GET", "/ekv?limit=x", b"", BadRequest),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_by_name(
    effects: Effects, method: str, target: str, body: bytes, kind: type[Exception]
) -> None:
    ctx, _ = context()
    with effects.of(ctx, ("app/loud",)), pytest.raises(kind):
        effects.answer(method, target, MINE, body)


def test_the_server_speaks_http(effects: Effects) -> None:
    ctx, outcome = context()
    connection = HTTPConnection("127.0.0.1", effects.port, timeout=10)
    with effects.of(ctx, ()):
        for target, headers, status in (("/ekv/a", MINE, 204), ("/ekv/a", {}, 400)):
            connection.request("PUT", target, body=b"v", headers=headers)
            response = connection.getresponse()
            said = response.read()
            assert response.status == status, said
        assert json.loads(said)["code"] == "bad-request"
        connection.putrequest("PUT", "/ekv/a")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        assert connection.getresponse().status == 400
    connection.close()
    assert outcome.values["a"]["_body"] == b"v"


def test_the_setting_that_the_runner_writes() -> None:
    setting = Setting.parse('{"contract": "http", "command": ["a", "b"], "http_port": 8080, "newer": 1}')
    assert setting.command == ("a", "b") and setting.http_port == 8080 and setting.http_path == "/"
    for text in ("[]", "{}", "nothing"):
        with pytest.raises(ValueError):
            Setting.parse(text)


def test_the_runner_and_the_adapters_use_the_same_words() -> None:
    """The runner does not import the SDK, so what both must know stands twice."""
    assert VARIABLE == contracts.SETTING
    assert LISTENING.encode() == pairs.LISTENING
