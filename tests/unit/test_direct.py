"""An instance with a `qos: 0` input, without a broker: what an event becomes, what goes out, what is refused; and what the agent makes of it."""

import json
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeflow.core.manifest import parse, resolve
from edgeflow.core.mqttprops import PublishProperties, decode_properties
from edgeflow.core.routing import InputRoute, compile_routes
from edgeflow.core.wire import FrameReader, encode_frame
from edgeflow.errors import BadOutput, ProtocolError, Unavailable
from edgeflow.flow import accounts
from edgeflow.flow.accounts import Accounts, function_acls
from edgeflow.flow.direct import DirectStats
from edgeflow.sdk import direct
from edgeflow.sdk.connection import Connection
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.direct import Direct
from edgeflow.sdk.log import Log
from edgeflow.sdk.runtime import Instance

GRANT = {"socket": "/s", "username": "u", "password": "p", "client_id": "c"}


class FakeBroker:
    """A session that is always there and keeps what is published."""

    def __init__(self, *_arguments: Any) -> None:
        self.received: deque[Any] = deque()
        self.published: list[tuple[str, bytes, dict[str, str], str | None]] = []
        self.there = True
        self.refused = ""
        self.subscribed = False
        self.renewed: list[dict[str, str]] = []
        self.socket: socket.socket | None = None
        self.unsent = 0
        self.paused_with: list[int] = []

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    @property
    def want_write(self) -> bool:
        return self.unsent > 0

    def write(self) -> None:
        self.unsent -= 1

    def pause(self) -> None:
        self.paused_with.append(self.unsent)

    def renew(self, grant: dict[str, str]) -> None:
        self.renewed.append(grant)

    def publish(self, channel: str, payload: bytes, properties: bytes) -> bool:
        if self.there:
            found, _ = decode_properties(properties, 0)
            self.published.append((channel, payload, dict(found.user), found.content_type))
        return self.there


class FakeAgent:
    """The EKV behind the instance socket."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values
        self.asked_context = 0

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        key = request["key"]
        if key not in self.values:
            return {"value": None}
        if key.startswith("large/"):
            return {"value": {"key": key, "version": "1", "digest": key, "size": len(self.values[key])}}
        return {"value": {"key": key, "version": "1", "data": self.values[key]}}

    def fetch(self, digest: str, ahead: Any = ()) -> bytes:
        return self.values[digest]

    def context(self) -> dict[str, Any]:
        self.asked_context += 1
        return {"model": {"version": "1", "digest": None, "data": b"m", "content_type": None}}


class Bench:
    """A Direct between a fake broker and a fake agent."""

    def __init__(
        self, handle: Callable[..., Any], values: dict[str, bytes] | None = None, *, channel: str = "fast/ping", captures: dict[str, int] | None = None,
        publish: tuple[str, ...] = ("fast/pong", "fast/more"),
    ) -> None:  # fmt: skip
        instance = Instance("/nowhere", lambda: handle)
        instance.info = FunctionInfo(
            namespace="fast", function="echo", instance="i", pop="la", inputs=("ping",), publish=publish, context={"model": "m"},
            captures=captures or {},
        )  # fmt: skip
        instance._handle = handle
        self.lines: list[dict[str, Any]] = []
        instance.log = Log(
            {}, SimpleNamespace(write=lambda text: self.lines.append(json.loads(text)), flush=lambda: None)
        )
        self.direct = Direct(instance, GRANT, channel, reconnect_s=1.0)
        self.broker: Any = self.direct._broker
        self.agent = FakeAgent(values or {})
        self.direct._port._agent = self.agent  # type: ignore[assignment]

    def hear(self, payload: bytes = b"x", content_type: str | None = None, **attributes: str) -> dict[str, int]:
        """Handle one message on the input channel; the counts."""
        return self.hear_on(self.direct._channel, payload, content_type, **attributes)

    def hear_on(
        self, channel: str, payload: bytes = b"x", content_type: str | None = None, **attributes: str
    ) -> dict[str, int]:
        """Handle one message on that channel; the counts."""
        self.direct._run(channel, payload, PublishProperties(list(attributes.items()), content_type))
        return dict(self.direct._counts)


@pytest.fixture(autouse=True)
def fake_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(direct, "BrokerSession", FakeBroker)
    yield


def seen_by(values: dict[str, bytes], payload: bytes, content_type: str | None = None, **attributes: str) -> Any:
    """The input that the handler got, as (data, id, source, type, subject, media type, attributes, time_ms)."""
    found: list[Any] = []

    def handle(ctx: Any, ping: Any) -> None:
        found.append(
            (
                ping.data,
                ping.id,
                ping.source,
                ping.type,
                ping.subject,
                ping.datacontenttype,
                dict(ping.attributes),
                ping.time_ms,
            )
        )

    bench = Bench(handle, values)
    bench.hear(payload, content_type, **attributes)
    return found[0] if found else bench.lines[-1]["error"]


def test_attributes_become_an_event() -> None:
    attributes = {
        "specversion": "1.0", "id": "e1", "source": "/c", "type": "t", "subject": "s", "time": "2025-01-01T00:00:00Z", "lens": "wide",
        "origin": "la", "seq": "7", "Bad Name": "x",
    }  # fmt: skip
    assert seen_by({}, b"x", "image/jpeg", **attributes) == (
        b"x",
        "e1",
        "/c",
        "t",
        "s",
        "image/jpeg",
        {"lens": "wide"},
        1_735_689_600_000,
    )


def test_a_plain_publish_is_an_event_too() -> None:
    before_ms = int(time.time() * 1000)
    data, id, source, type, subject, media, attributes, time_ms = seen_by({}, b"\xff", time="yesterday")
    assert (data, source, type, subject, media, attributes) == (
        b"\xff",
        "/pops/la/mqtt",
        "edgeflow.message",
        None,
        None,
        {},
    )
    assert len(id) == 32 and before_ms <= time_ms <= int(time.time() * 1000)


def test_references_are_resolved_at_once() -> None:
    assert seen_by({"k": b"value"}, b'{"dataref": "ekv:fast/k"}')[0] == b"value"
    assert seen_by({"k": b"value"}, b"", dataref="ekv:fast/k")[0] == b"value"
    assert seen_by({"large/k": b"value"}, b"", dataref="ekv:fast/large/k")[0] == b"value"
    assert "cannot be read at this PoP yet" in seen_by({}, b'{"dataref": "ekv:fast/k"}')
    assert "outside the channel's namespace" in seen_by({"k": b"value"}, b'{"dataref": "ekv:other/k"}')
    digest = "sha256:" + "0" * 64
    document = {
        "specversion": "1.0",
        "id": "1",
        "source": "/s",
        "type": "t",
        "dataref": f"http://la/v1/blobs/fast/{digest}",
        "size": 3,
    }
    assert seen_by({digest: b"big"}, json.dumps(document).encode(), "application/cloudevents+json")[:2] == (b"big", "1")
    inside = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"a": 1}}
    assert seen_by({}, json.dumps(inside).encode(), "application/cloudevents+json; charset=utf-8")[0] == b'{"a":1}'
    assert "not JSON" in seen_by({}, b"{", "application/cloudevents+json")


def test_outputs_go_out_when_the_handler_has_returned() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        ctx.emit("pong", {"a": 1}, attributes={"n": 2})
        assert not bench.broker.published
        ctx.emit("more", b"y" * 10_000, subject="own", type="special")

    bench = Bench(handle)
    assert bench.hear(b"x", id="e1", source="/c", subject="s", traceparent="t")["processed"] == 1
    first, second = bench.broker.published
    assert first[:2] == ("fast/pong", b'{"a":1}') and first[3] == "application/json"
    assert second[:2] == ("fast/more", b"y" * 10_000) and second[3] is None
    assert {name: first[2][name] for name in ("specversion", "source", "type", "subject", "n", "traceparent")} == {
        "specversion": "1.0", "source": "/fast/echo", "type": "edgeflow.message", "subject": "s", "n": "2", "traceparent": "t"
    }  # fmt: skip
    assert second[2]["subject"] == "own" and second[2]["type"] == "special" and first[2]["id"] != second[2]["id"]
    again = Bench(handle)
    bench, before = again, [one[2]["id"] for one in bench.broker.published]
    again.hear(b"x", id="e1", source="/c", subject="s", traceparent="t")
    assert [one[2]["id"] for one in again.broker.published] == before, "another life of the instance makes the same ids"


def test_a_failure_publishes_nothing_and_is_counted() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        ctx.emit("pong", b"half")
        raise SystemExit(3)

    bench = Bench(handle)
    assert bench.hear() == {"processed": 0, "failed": 1, "repeated": 0}
    assert bench.broker.published == []
    bench = Bench(lambda ctx, ping: "two channels")
    assert bench.hear()["failed"] == 1
    bench = Bench(lambda ctx, ping: ctx.emit("pong", b"x"))
    bench.broker.there = False
    assert bench.hear()["failed"] == 1


def test_a_filter_gives_each_event_its_channel_and_captures() -> None:
    heard: list[Any] = []

    def handle(ctx: Any, ping: Any) -> bytes:
        heard.append((ping.channel, dict(ping.captures), ping.event.channel))
        return bytes(ping.data)

    bench = Bench(handle, channel="fast/cam/+/ping", captures={"id": 2}, publish=("fast/cam/{id}/pong",))
    bench.hear_on("fast/cam/7/ping", b"a")
    document = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"a": 1}}
    bench.hear_on("fast/cam/8/ping", json.dumps(document).encode(), "application/cloudevents+json")
    assert heard == [
        ("fast/cam/7/ping", {"id": "7"}, "fast/cam/7/ping"),
        ("fast/cam/8/ping", {"id": "8"}, "fast/cam/8/ping"),
    ]
    assert [one[:2] for one in bench.broker.published] == [("fast/cam/7/pong", b"a"), ("fast/cam/8/pong", b'{"a":1}')]


def test_a_filter_does_not_ask_for_what_belongs_to_edgeflow() -> None:
    heard: list[str] = []
    bench = Bench(lambda ctx, ping: heard.append(ping.channel), channel="fast/#")
    for channel in ("fast/_re/client/1", "fast/_dead/f", "fast/_invoke/f", "fast/a", "fast/a/_b"):
        bench.hear_on(channel)
    assert heard == ["fast/a", "fast/a/_b"]
    counts = bench.hear_on("fast/a//b")  # a plain MQTT client may publish on what is no channel
    assert (counts["failed"], counts["processed"]) == (1, 2)
    assert "empty level" in bench.lines[-1]["error"]
    dead = Bench(lambda ctx, ping: heard.append(ping.channel), channel="fast/_dead/+")
    dead.hear_on("fast/_dead/f")
    assert heard[-1] == "fast/_dead/f"


def test_outputs_go_to_templates_or_nowhere() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        for channel in ping.json():
            ctx.emit(channel, b"x")

    bench = Bench(handle, channel="fast/cam/+/ping", captures={"id": 2}, publish=("fast/cam/{id}/pong", "fast/log/+"))
    counts = bench.hear_on("fast/cam/7/ping", b'["cam/{id}/pong", "cam/9/pong", "log/a"]')
    assert counts["processed"] == 1
    assert [one[0] for one in bench.broker.published] == ["fast/cam/7/pong", "fast/cam/9/pong", "fast/log/a"]
    for refused in (b'["log/a", "other"]', b'["log/a", "log/+"]', b'["log/a", "cam/{none}/pong"]'):
        assert bench.hear_on("fast/cam/7/ping", refused)["processed"] == 1
    assert len(bench.broker.published) == 3


def test_an_output_that_mqtt_cannot_carry_fails_the_event_as_a_whole() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        ctx.emit("pong", b"first")
        ctx.emit("pong", b"second", attributes={"long": "x" * 70_000})

    bench = Bench(handle)
    assert bench.hear()["failed"] == 1
    assert bench.broker.published == []


@pytest.mark.parametrize("end", ["park", "stop"])
def test_answers_that_are_on_their_way_leave_before_the_session_ends(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "WRITE_OUT_S", 0.2)
    bench = Bench(lambda ctx, ping: None)
    bench.direct._welcomed = True
    leave = (lambda: bench.direct._heard({"t": "park"})) if end == "park" else bench.direct._farewell
    mine, broker = socket.socketpair()
    with mine, broker:
        bench.broker.socket, bench.broker.unsent = mine, 5
        leave()
        bench.broker.socket, bench.broker.unsent = None, 5  # the broker is away: nothing can be done
        leave()
        mine.setblocking(False)
        try:
            while True:
                mine.send(bytes(65_536))
        except BlockingIOError:
            pass
        bench.broker.socket, bench.broker.unsent = mine, 5  # it takes nothing: not for ever
        leave()
    assert bench.broker.paused_with == [0, 5, 5]


def test_there_is_no_state_and_no_counter() -> None:
    errors: list[Exception] = []

    def handle(ctx: Any, ping: Any) -> None:
        for use in (lambda: ctx.ekv.increment("k"), lambda: ctx.state.clear()):
            with pytest.raises(BadOutput) as caught:
                use()
            errors.append(caught.value)
        assert (ctx.key, ctx.window, ctx.replay, ctx.shadow) == (None, None, None, False)

    assert Bench(handle).hear()["processed"] == 1
    assert "'k'" in str(errors[0]) and "qos 0" in str(errors[0]) and "state" in str(errors[1])


def test_a_grant_that_does_not_help_is_not_asked_for_again_at_once() -> None:
    """The subscription is refused whatever the account is: each grant makes one anew, at the broker and on disk."""
    bench = Bench(lambda ctx, ping: None)
    mine, agent = socket.socketpair()
    connection = Connection(mine, on_kill=lambda: None)
    try:
        bench.direct._attach(connection)
        bench.direct._welcomed = True
        bench.broker.refused = "Not authorized"
        asked, now_s, reader = [], 1000.0, FrameReader()
        agent.setblocking(False)
        while now_s < 1060.0:
            bench.direct._care_for_agent(now_s)
            try:
                asked += [(now_s, one["t"]) for one in reader.feed(agent.recv(1 << 16))]
                agent.sendall(encode_frame({"t": "granted", "mqtt": GRANT}))
            except BlockingIOError:
                pass
            now_s += 0.01
        assert [kind for _, kind in asked] == ["grant"] * len(asked)
        gaps = [round(later - earlier, 1) for (earlier, _), (later, _) in pairwise(asked)]
        assert gaps == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0]
        assert bench.broker.renewed
        bench.broker.refused, bench.broker.subscribed = "", True
        bench.direct._care_for_agent(now_s)
        assert bench.direct._grant_wait_s == 0.5
    finally:
        connection.close()
        agent.close()


def test_an_id_that_was_heard_lately_is_left_out() -> None:
    calls: list[str] = []
    bench = Bench(lambda ctx, ping: calls.append(ping.id))
    for id in ("a", "b", "a"):
        counts = bench.hear(id=id, source="/c")
    bench.hear(id="a", source="/d")
    bench.hear()
    bench.hear()
    assert calls[:3] == ["a", "b", "a"] and len(calls) == 5 and counts["repeated"] == 1


def test_values_are_read_and_never_written() -> None:
    errors: list[Exception] = []

    def handle(ctx: Any, ping: Any) -> None:
        assert ctx.ekv.get("k").data == b"v" and ctx.ekv.get("none") is None
        for write in (lambda: ctx.ekv.put("k", b"x"), lambda: ctx.ekv.delete("k")):
            with pytest.raises(BadOutput) as caught:
                write()
            errors.append(caught.value)

    assert Bench(handle, {"k": b"v"}).hear()["processed"] == 1
    assert len(errors) == 2 and all("'k'" in str(error) and "qos 0" in str(error) for error in errors)


def test_context_is_asked_for_once_and_only_when_it_is_touched() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        if ping.data == b"touch":
            assert ctx.context.model.data == b"m" == ctx.context["model"].data

    bench = Bench(handle)
    bench.hear(b"x")
    assert bench.agent.asked_context == 0
    bench.hear(b"touch")
    assert bench.agent.asked_context == 1


def test_while_the_agent_is_away_reads_fail_by_name() -> None:
    def handle(ctx: Any, ping: Any) -> None:
        if ping.data == b"read":
            with pytest.raises(Unavailable, match="agent of this PoP is away"):
                ctx.ekv.get("k")

    bench = Bench(handle)
    bench.direct._port.use(None)
    assert bench.hear(b"x")["processed"] == 1 and bench.hear(b"read")["processed"] == 2


def test_a_grant_that_lacks_a_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeflow.sdk.broker import BrokerSession

    monkeypatch.setattr(direct, "BrokerSession", BrokerSession)
    instance = Instance("/nowhere", lambda: lambda ctx: None)
    instance.info = FunctionInfo(namespace="fast", function="echo", inputs=("ping",))
    with pytest.raises(ProtocolError, match="client_id"):
        Direct(
            instance,
            {name: value for name, value in GRANT.items() if name != "client_id"},
            "fast/ping",
            reconnect_s=1.0,
        )


# ------------------------------------------------------------------ the agent's side


def stats(**more: Any) -> dict[str, Any]:
    return {
        "processed": 3,
        "failed": 1,
        "repeated": 0,
        "subscribed": True,
        "handler_us": [100.0, 2000.0],
        "platform_us": None,
        **more,
    }


def test_counts_go_on_over_the_lives_of_instances() -> None:
    figures = DirectStats()
    assert figures.take("a", stats()) == (3, 1)
    figures.take("a", stats(processed=5))
    figures.take("a", stats(processed=2, failed=0))  # the process began anew
    figures.forget("a")
    figures.take("b", stats(processed=10, failed=0, subscribed=False))
    document = figures.to_json()
    assert (document["invocations"], document["failed"], document["subscribed"]) == (17, 1, False)
    assert document["handler_ms"] == {"p50": 0.1, "p99": 2.0} and document["platform_ms"] == {"p50": None, "p99": None}


@pytest.mark.parametrize(
    "damage", [{"processed": -1}, {"failed": "3"}, {"repeated": None}, {"processed": True}, {"processed": 1 << 60}]
)
def test_damaged_figures_end_the_connection(damage: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        DirectStats().take("a", stats(**damage))


class FakeControl:
    """The admin's session: answers at once, with the errors it is told to."""

    def __init__(self, *_arguments: Any) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.errors: dict[str, str] = {}

    def ask(self, commands: list[dict[str, Any]], done: Callable[[list[str | None]], None]) -> None:
        self.asked.append(commands)
        done([self.errors.get(command["command"]) for command in commands])


def fast_route() -> Any:
    text = (
        "namespace: fast\nfunctions:\n  echo: {image: i, subscribe: {channel: ping, qos: 0}, publish: [pong, more]}\n"
    )
    return compile_routes(resolve(parse(text, default_pop="la"), {}, applied_ms=1, default_pop="la"), "la").functions[0]


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    mqtt = SimpleNamespace(admin_password_file=tmp_path / "pw")
    return SimpleNamespace(state_dir=tmp_path, mqtt=mqtt, function_socket_inside=Path("/run/f/s"))


def made(settings: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Accounts, FakeControl]:
    monkeypatch.setattr(accounts, "ControlSession", FakeControl)
    found = Accounts(SimpleNamespace(), settings)  # type: ignore[arg-type]
    return found, found.control  # type: ignore[return-value]


def test_an_account_may_use_the_functions_own_channels_only() -> None:
    acls = function_acls(fast_route())
    assert {(acl["acltype"], acl["topic"]) for acl in acls} == {
        ("subscribeLiteral", "fast/ping"), ("unsubscribeLiteral", "fast/ping"), ("publishClientReceive", "fast/ping"),
        ("publishClientSend", "fast/pong"), ("publishClientSend", "fast/more"),
    }  # fmt: skip
    assert all(acl["allow"] for acl in acls)


def test_a_program_of_contract_mqtt_chooses_filters_within_its_channels_and_has_several_sessions(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = replace(fast_route(), contract="mqtt", inputs=(InputRoute("x", "fast/#"),))
    allowed = {(acl["acltype"], acl["topic"]) for acl in function_acls(route) if acl["allow"]}
    assert {
        ("subscribePattern", "fast/#"),
        ("unsubscribePattern", "fast/#"),
        ("publishClientReceive", "fast/#"),
    } < allowed
    denied = {(acl["acltype"], acl["topic"]) for acl in function_acls(route) if not acl["allow"]}
    assert ("publishClientReceive", "fast/_dead/#") in denied
    found, control = made(settings, monkeypatch)
    found.grant(("fast", "echo", "r1"), route, lambda _: None)
    assert "clientid" not in control.asked[0][-1]


def test_a_grant_is_the_same_until_the_broker_refuses_it(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key, given = ("fast", "echo", "r1"), []
    first, control = made(settings, monkeypatch)
    first.grant(key, fast_route(), given.append)
    assert [command["command"] for command in control.asked[0]] == [
        "deleteClient",
        "deleteRole",
        "createRole",
        "createClient",
    ]
    client = control.asked[0][-1]
    assert client["clientid"] == given[0]["client_id"] and client["roles"] == [{"rolename": client["username"]}]
    assert (settings.state_dir / "function-accounts.json").stat().st_mode & 0o777 == 0o600
    second, control = made(settings, monkeypatch)  # the process restarted
    control.errors = {"createRole": "Role already exists", "createClient": "Client already exists"}
    second.grant(key, fast_route(), given.append)
    assert given[1] == given[0] and not any("delete" in command["command"] for command in control.asked[0])
    second.grant(key, fast_route(), given.append, anew=True)
    assert given[2]["password"] != given[0]["password"] and given[2]["client_id"] != given[0]["client_id"]
    control.errors = {"createClient": "Internal error"}
    second.grant(key, fast_route(), given.append)
    assert len(given) == 3, "an account that could not be made is not handed out"


def test_accounts_that_are_not_wanted_any_more_go(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, control = made(settings, monkeypatch)
    for revision in ("r1", "r2"):
        found.grant(("fast", "echo", revision), fast_route(), lambda _: None)
    found.keep([("fast", "echo", "r2"), ("fast", "other", "r9")])
    assert [command["command"] for command in control.asked[-1]] == ["deleteClient", "deleteRole"]
    assert control.asked[-1][0]["username"] == "function/fast/echo/r1"
    assert list(json.loads((settings.state_dir / "function-accounts.json").read_text())) == ["fast/echo/r2"]


def test_a_pop_without_the_socket_says_so(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.function_socket_inside = None
    found, _ = made(settings, monkeypatch)
    with pytest.raises(Unavailable, match=r"fast/echo has a qos 0 input, but mqtt\.function_socket"):
        found.grant(("fast", "echo", "r1"), fast_route(), lambda _: None)


# ------------------------------------------------------------------ the session


class Reason:
    """A reason code of MQTT."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_failure = text != "Granted QoS 0"

    def __str__(self) -> str:
        return self.text


def session() -> Any:
    from edgeflow.sdk.broker import BrokerSession

    return BrokerSession(GRANT, "fast/cam/+/ping", 60, Log({}, SimpleNamespace(write=len, flush=lambda: None)))


def test_a_message_is_its_topic_its_payload_and_its_properties() -> None:
    from edgeflow.core.mqttprops import encode_properties

    heard = session()
    for topic, is_good in (("fast/cam/7/ping", True), ("fast/cam/gr\u00fcn/ping", True), ("\udcff", False)):
        name = topic.encode("utf-8", "surrogateescape")
        packet = len(name).to_bytes(2, "big") + name + encode_properties([("id", "1")], content_type="text/x") + b"body"
        heard._client._in_packet.update(command=0x30, packet=bytearray(packet))
        assert (heard._client._handle_publish() == 0) == is_good
    assert [(topic, payload, found.user, found.content_type) for topic, payload, found in heard.received] == [
        ("fast/cam/7/ping", b"body", [("id", "1")], "text/x"),
        ("fast/cam/gr\u00fcn/ping", b"body", [("id", "1")], "text/x"),
    ]
    heard._client._in_packet.update(command=0x30, packet=bytearray(b"\x00\x09fast"))
    assert heard._client._handle_publish() != 0, "a topic that is longer than its packet"


def test_a_refusal_is_over_when_the_broker_has_subscribed_it_after_all() -> None:
    heard = session()
    heard._on_subscribe(None, None, 1, [Reason("Not authorized")], None)
    assert (heard.refused, heard.subscribed) == ("Not authorized", False)
    heard._on_subscribe(None, None, 2, [Reason("Granted QoS 0")], None)
    assert (heard.refused, heard.subscribed) == ("", True)
