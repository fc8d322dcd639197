"""What does not go together in a manifest: each combination is refused by name, at its line, with what to write instead."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgeflow.core.manifest import check_resolved, parse, resolve, revision_of
from edgeflow.errors import BadManifest


def problems(text: str) -> list[str]:
    with pytest.raises(BadManifest) as caught:
        parse(text, default_pop="la", known_namespaces=["audio"])
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


WINDOWED = "channel: r, by: subject"
PLACES: list[tuple[str, str]] = [
    # names and channels
    ("subscribe: cam/{id}", "subscribe: channel 'v/cam/+' ends with a wildcard or a capture; name the handler's parameter with `as:`"),
    ("subscribe: ['a/+', b]", "ends with a wildcard or a capture; name the handler's parameter with `as:`"),
    ("subscribe: 'cam/{id/frames'", "'{id' is not a capture; a capture is a whole level: cam/{id}/frames"),
    ("subscribe: 'cam/{id}/{id}/frames'", "captures 'id' twice; give each capture a name of its own"),
    ("subscribe: 'a/#/b'", "is not a channel filter"),
    ("subscribe: 'a/b#'", "is not a channel filter"),
    ("subscribe: audio/+/frames", "'audio' is another namespace"),
    ("subscribe: [frames, {channel: '#', as: all}]", "'v/frames' and 'v/#' match the same channels; an event comes in as one input only"),
    ("subscribe: {join: ['a/+/x', {channel: a/b/x, as: y}]}", "match the same channels"),
    ("subscribe: {join: ['a/{id}/x', 'a/{no}/x']}", "channel 'v/a/+/x' stands here twice"),
    ("subscribe: _dead", "'_dead' is reserved"),
    ("subscribe: _re/x", "'_re/x' is reserved: names that start with _ belong to edgeflow"),
    ("subscribe: _invoke/f", "'_invoke/f' is reserved"),
    ("subscribe: {channel: '_dead/#', as: x}", "the dead letters of a function are `_dead/<function>`, of all `_dead/+`"),
    ("subscribe: _dead/other/x", "the dead letters of a function are `_dead/<function>`"),
    ("subscribe: _dead/nobody", "there is no function 'nobody' in this manifest; there are other"),
    ("subscribe: _dead/f", "a function that handles its own dead letters may never end"),
    ("subscribe: {channel: _dead/other, qos: 0}", "subscribe.qos: dead letters are kept"),
    # where, by, collect
    ("subscribe: {channel: a, where: 'data.n > 5'}", "subscribe.where: 'data.n > 5': cannot be read from character 10 on, at '5'; text stands in 'quotes'"),
    ("subscribe: {channel: a, where: data.n > `x`}", "what stands in backquotes is JSON"),
    ("subscribe: {channel: a, where: 'size(data) > `1`'}", "there is no function size() (character 1)"),
    ("subscribe: {channel: a, where: true}", "subscribe.where: is True; write text"),
    ("subscribe: {channel: a, where: urgent}", "'urgent' is text, neither true nor false; compare it"),
    (f"subscribe: {{channel: a, where: \"type == '{'x' * 1000}'\"}}", "has 1010 characters; the most is 1000"),
    (
        f"subscribe: {{join: [{{channel: a, where: \"type == '{'x' * 600}'\"}}, b], where: \"type == '{'x' * 600}'\"}}",
        "subscribe.where: is longer than 1000 characters together with the input's own",
    ),
    ("subscribe: {channel: 'cam/{id}/x', where: \"captures.cam == '3'\"}", "where names the capture 'cam', which channel 'v/cam/+/x' does not have; write {cam}"),
    ("subscribe: {join: ['a/{id}/x', b], by: captures.id}", "subscribe.by: by names the capture 'id', which channel 'v/b' does not have"),
    ("subscribe: {join: ['a/{id}/x', b], by: captures.no || subject}", "by names the capture 'no'"),
    ("subscribe: {join: [a, b], by: captures}", "'captures' is a map; name one of its values, as in captures.camera"),
    ("subscribe: {join: [a, b], by: time}", "differs from event to event"),
    ("subscribe: {join: [a, b], by: 5}", "subscribe.by: is 5; write text"),
    ("subscribe: {join: {collect: 0}, channel: a, by: c}", "0 is out of range; collect 1 to 100000 events"),
    ("subscribe: {join: {collect: 100001}, channel: a, by: c}", "100001 is out of range"),
    ("subscribe: {join: {collect: true}, channel: a, by: c}", "True is no count"),
    ("subscribe: {join: {collect: 2.5}, channel: a, by: c}", "2.5 is no count"),
    ("subscribe: {join: {collect: data.}, channel: a, by: c}", "something is missing at its end"),
    ("subscribe: {join: {collect: captures.n}, channel: 'a/{m}/x', by: c}", "subscribe.join.collect: collect names the capture 'n'"),
    # kinds
    ("subscribe: {join: {any: [a]}}", "subscribe.join: joins one channel only"),
    ("subscribe: {join: {any: [a, b]}, on_timeout: drop}", "subscribe.on_timeout: the first event starts the function, so nothing times out"),
    ("subscribe: {join: {any: [a, b]}, duplicates: last}", "subscribe.duplicates: the first event starts the function"),
    ("subscribe: {join: {k: 1, of: [a, b]}, duplicates: all}", "subscribe.duplicates: the first event starts the function"),
    ("subscribe: {join: {k: 3, of: [a, b]}}", "subscribe.join.k: 3 of 2 channels can never be there; write a number below 2"),
    ("subscribe: {join: {k: 2, of: [a, b]}}", "subscribe.join.k: 2 of 2 channels are all of them; write join: [<channels>]"),
    ("subscribe: {join: {k: 0, of: [a, b]}}", "subscribe.join.k: 0: input should be greater than or equal to 1"),
    ("subscribe: {join: {k: 2}}", "subscribe.join.of: is missing; list the channels"),
    ("subscribe: {join: {of: [a, b]}}", "subscribe.join.k: is missing; say how many"),
    ("subscribe: {join: {}}", "a join is a list of channels, or one of {any: [...]}, {k: 2, of: [...]}"),
    ("subscribe: {join: {collect: 2}, channel: a, by: c, duplicates: all}", "subscribe.duplicates: every event counts in a collect or a window"),
    (f"subscribe: {{join: {{tumbling: 1s}}, {WINDOWED}, duplicates: last}}", "subscribe.duplicates: every event counts in a collect or a window"),
    ("subscribe: {join: [a, b], duplicates: none}", "'none' is not available; write one of all, first, last"),
    ("subscribe: {join: [a, b], max_pending: 0}", "subscribe.max_pending: 0: input should be greater"),
    ("subscribe: {join: {any: [{channel: a, qos: 0}, b]}}", "subscribe.join.any.0.qos: not available in this version"),
    ("subscribe: {join: {k: 2, of: [a, b, {channel: c, qos: 0}]}}", "subscribe.join.of.2.qos: not available in this version"),
    ("subscribe: {join: [a, b], as: c}", "subscribe.as: each channel of a join has its own"),
    ("subscribe: {join: [a, b], channel: c}", "subscribe.channel: stands beside the channels of the join"),
    ("subscribe: {channel: a, within: 5s}", "subscribe.within: goes with a join"),
    ("subscribe: {channel: a, max_pending: 5}", "for a channel it is channels: {<channel>: {max_pending: 1000}}"),
    ("subscribe: {channel: a, latest: b}", "subscribe.latest: stands beside `subscribe`, not in it"),
    # windows
    ("subscribe: {join: {tumbling: 1s}, channel: a}", "subscribe.by: is missing; name what events of one group share"),
    ("subscribe: {join: {session: 1s}, by: subject}", "subscribe.channel: is missing; name the channel"),
    (f"subscribe: {{join: {{sliding: 10s}}, {WINDOWED}}}", "subscribe.join.every: is missing; say how often a window starts"),
    (f"subscribe: {{join: {{sliding: 10s, every: 99ms}}, {WINDOWED}}}", "subscribe.join.every: puts each event into more than 100 windows"),
    (f"subscribe: {{join: {{sliding: 10s, every: 11s}}, {WINDOWED}}}", "subscribe.join.every: is longer than the windows"),
    (f"subscribe: {{join: {{sliding: 10s, every: 10s}}, {WINDOWED}}}", "so they do not overlap; write join: {tumbling: ...}"),
    (f"subscribe: {{join: {{tumbling: 10s, every: 1s}}, {WINDOWED}}}", "subscribe.join.every: goes with sliding windows"),
    (f"subscribe: {{join: {{tumbling: 10}}, {WINDOWED}}}", "subscribe.join.tumbling: 10 is not a duration"),
    (f"subscribe: {{join: {{tumbling: 0s}}, {WINDOWED}}}", "out of range"),
    (f"subscribe: {{join: {{tumbling: 1s}}, {WINDOWED}, lateness: -1s}}", "'-1s' is not a duration"),
    (f"subscribe: {{join: {{tumbling: 1s}}, {WINDOWED}, idle: 0s}}", "out of range"),
    ("subscribe: {join: [a, b], lateness: 1s}", "subscribe.lateness: goes with windows"),
    ("subscribe: {channel: a, window: 1s}", "subscribe.window: goes with windows"),
    # side inputs
    ("subscribe: a, latest: a", "latest: two inputs are named 'a'; rename one"),
    ("subscribe: a, latest: [b/x, c/x]", "latest: two inputs are named 'x'"),
    ("subscribe: a, latest: 'b/{id}'", "latest: channel 'v/b/+' ends with a wildcard or a capture"),
    ("subscribe: a, latest: _dead/other", "'_dead/other' is reserved"),
    ("subscribe: a, latest: {channel: b, by: data.}", "latest.by: 'data.': something is missing"),
    ("subscribe: a, latest: {channel: 'b/{id}', as: c, by: captures.id}", "latest: by names the capture 'id', which channel 'v/a' does not have"),
    ("subscribe: 'a/{id}/x', latest: {channel: b, by: captures.id}", "latest: by names the capture 'id', which channel 'v/b' does not have"),
    # keys
    ("subscribe: a, state: {}", "state.by: is missing; say what the key is, as in state: {by: subject}"),
    ("subscribe: a, state: true", "state: is True; write a map of fields"),
    ("subscribe: a, state: {by: id}", "state.by: 'id' differs from event to event"),
    ("subscribe: a, state: {by: captures.id}", "state: by names the capture 'id'"),
    ("subscribe: a, state: {by: subject}, ordered: true", "ordered: stands beside state, which is in order per key already"),
    ("subscribe: a, ordered: 1", "ordered: 1 is not available; write true"),
    ("subscribe: a, ordered: {by: A_B}", "'A_B' is not the name of an event attribute"),
    ("subscribe: {join: [a, b], by: chunk}, state: {by: subject}", "state: goes by 'subject', but the events were joined by 'chunk'; write state: {by: chunk}"),
    (f"subscribe: {{join: {{tumbling: 1s}}, {WINDOWED}}}, ordered: {{by: user}}", "ordered: goes by 'user', but the events were joined by 'subject'"),
    # outputs
    ("subscribe: a, publish: 'out/{id}'", "publish: 'v/out/{id}' names the capture 'id', which no channel of subscribe has"),
    ("subscribe: a, publish: 'out/#'", "'out/#': `#` is for subscriptions; write `+`"),
    ("subscribe: a, publish: _dead/x", "'_dead/x' is reserved"),
    ("subscribe: 'a/{id}/x', publish: ['out/{id}', 'out/{id}']", "stands here twice"),
    # qos 0
    ("subscribe: {channel: a, qos: 0, where: data.ok}", "subscribe.where: with `qos: 0` the instance hears the broker itself"),
    ("subscribe: {channel: a, qos: 0}, latest: s", "latest: side inputs are kept for invocations, and with `qos: 0` there are none"),
    ("subscribe: {channel: a, qos: 0}, state: {by: subject}", "state: nothing is committed with `qos: 0`"),
    ("subscribe: {channel: a, qos: 0}, ordered: true", "ordered: nothing waits for its turn with `qos: 0`"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), PLACES)
def test_what_does_not_go_together(fields: str, words: str) -> None:
    text = f"namespace: v\nfunctions:\n  other: {{image: i, subscribe: o}}\n  f: {{image: i, {fields}}}\n"
    lines = problems(text)
    assert any(words in line for line in lines), lines
    assert all(line.startswith("line 4: functions.f") for line in lines), lines


POLICIES: list[tuple[str, str]] = [
    ("{frames: {}}", "channels.frames: says nothing; give max_pending, deadline, priority or gated"),
    ("{frames: {gated: false}}", "channels.frames: says nothing"),
    ("{frames: }", "channels.frames: is empty; write a map of fields"),
    ("{frames: {on_full: drop-oldest}}", "channels.frames.on_full: has no number to go by; add max_pending"),
    ("{frames: {on_full: block, max_pending: 5}}", "channels.frames.on_full: 'block' is not available; write one of drop-oldest, keep-latest, refuse"),
    ("{frames: {max_pending: 0}}", "channels.frames.max_pending: 0: input should be greater"),
    ("{frames: {max_pending: many}}", "channels.frames.max_pending: is 'many'; write a whole number"),
    ("{frames: {deadline: 2}}", "channels.frames.deadline: 2 is not a duration"),
    ("{frames: {gated: 'yes'}}", "channels.frames.gated: is 'yes'; write true or false"),
    ("{frames: {deliver: [la]}}", "channels.frames.deliver: not available in this version; every PoP of the namespace gets the data"),
    ("{frames: {qos: 0}}", "channels.frames.qos: belongs to the subscription"),
    ("{frames: {gatd: true}}", "channels.frames.gatd: unknown field; did you mean 'gated'?"),
    ("{_dead/f: {gated: true}}", "channels._dead/f: '_dead/f' is reserved"),
    ("{audio/x: {gated: true}}", "'audio' is another namespace"),
    ("{'cam/{id}': {gated: true}}", "a policy has no use for captures; write + in place of {id}"),
    ("{'raw/#': {gated: true}, raw/a: {deadline: 1s}}", "channels.raw/a: holds for channels that 'raw/#' holds for as well"),
    ("{a: {gated: true}, v/a: {deadline: 1s}}", "channels.v/a: holds for channels that 'a' holds for as well"),
    ("[frames]", "channels: is a list; write a map"),
]  # fmt: skip


@pytest.mark.parametrize(("policies", "words"), POLICIES)
def test_policies_that_are_none(policies: str, words: str) -> None:
    lines = problems(f"namespace: v\nchannels: {policies}\nfunctions: {{f: {{image: i, subscribe: a}}}}")
    assert any(words in line for line in lines), lines
    assert all(line.startswith("line 2: channels") for line in lines), lines


def test_a_function_at_the_broker_cannot_publish_on_a_gated_channel() -> None:
    text = "namespace: v\nchannels: {'out/#': {gated: true}}\nfunctions:\n  f: {image: i, subscribe: {channel: a, qos: 0}, publish: [out/x, fine]}\n"
    (line,) = problems(text)
    assert line.startswith(
        "line 4: functions.f.publish: 'v/out/x' is gated, and with `qos: 0` a function publishes over MQTT"
    )
    parse(text.replace(", qos: 0", ", qos: 1"), default_pop="la")


def test_problems_of_every_part_come_at_once() -> None:
    text = """namespace: v
channels:
  frames: {}
functions:
  f:
    image: i
    subscribe: {join: {k: 3, of: [a, b]}, by: time}
    state: {by: chunk}
    publish: out/{id}
  g:
    image: i
    subscribe: [a, a]
    latest: {channel: s, where: x}
    publish: out/{id}
"""
    lines = problems(text)
    assert [line.split(":")[0] for line in lines] == ["line 3", "line 7", "line 12", "line 13", "line 14"], lines


# ------------------------------------------------------------------ from elsewhere

GOOD = """
namespace: v
channels: {raw: {max_pending: 5}}
functions:
  f: {image: i, subscribe: {channel: 'a/{id}/x', where: data.ok}, latest: {channel: s, by: subject}, state: {by: subject}, publish: 'b/{id}'}
  k: {image: i, subscribe: {join: {k: 2, of: [a, b, c]}}}
  w: {image: i, subscribe: {join: {sliding: 10s, every: 1s}, channel: a, by: subject}}
  q: {image: i, subscribe: {channel: a, qos: 0}, publish: out}
"""


def damaged(name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of a resolved manifest in which somebody changed a function, with a revision that fits."""
    document = json.loads(json.dumps(resolve(parse(GOOD, default_pop="la"), {}, applied_ms=1, default_pop="la")))
    check_resolved(document)
    one = document["functions"][name] if name else document
    change(one)
    if name:
        one["revision"] = revision_of(one)
    with pytest.raises(BadManifest) as caught:
        check_resolved(document)
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("f", lambda one: one["inputs"][0].update(where="data.ok ="), "subscribe.where: 'data.ok =': cannot be read from"),
        ("f", lambda one: one["inputs"][0].update(where="data.x == '" + "x" * 1000 + "'"), "is longer than 1000 characters"),
        ("f", lambda one: one["inputs"][0].update(where=5), "inputs.0.where: is 5; write text"),
        ("f", lambda one: one["inputs"][0].update(channel="v/a/{id}/x"), "is not resolved: captures stand beside the filter"),
        ("f", lambda one: one["inputs"][0].update(channel="other/a"), "outside the namespace 'v'"),
        ("f", lambda one: one["inputs"][0].update(channel="v/_re/x", captures={}), "is reserved"),
        ("f", lambda one: one["inputs"][0].update(captures={"id": 1}), "the capture 'id' is not a level of 'v/a/+/x'"),
        ("f", lambda one: one["inputs"][0].update(captures={"id": 9}), "is not a level of"),
        ("f", lambda one: one["inputs"][0].update(captures={"i d": 2}), "is not a level of"),
        ("f", lambda one: one["inputs"][0].update(captures={"id": "2"}), "captures.id: is '2'; write a whole number"),
        ("f", lambda one: one["latest"][0].update(channel="v/_dead/f"), "is reserved"),
        ("f", lambda one: one["latest"][0].update(by="data."), "something is missing at its end"),
        ("f", lambda one: one["latest"][0].update(name="x"), "two inputs are named 'x'"),
        ("f", lambda one: one.update(keyed={"by": "subject"}), "keyed.state: is missing"),
        ("f", lambda one: one.update(keyed={"by": "id", "state": True}), "differs from event to event"),
        ("f", lambda one: one.update(publish=["v/b/{other}"]), "names the capture 'other'"),
        ("f", lambda one: one.update(publish=["v/#"]), "`#` is for subscriptions"),
        ("f", lambda one: one.update(publish=["v/_dead/f"]), "is reserved"),
        ("k", lambda one: one["join"].update(k=3), "3 of 3 channels are all of them"),
        ("k", lambda one: one["join"].pop("k"), "`k` belongs to the kind k"),
        ("k", lambda one: one["join"].update(kind="all"), "`k` belongs to the kind k"),
        ("k", lambda one: one["join"].update(kind="some"), "join.kind"),
        ("k", lambda one: one["join"].update(count=3), "`count` belongs to the kind collect"),
        ("k", lambda one: one["join"].update(duplicates="first"), "join.duplicates"),
        ("w", lambda one: one["join"].pop("window"), "`window` belongs to the kind window"),
        ("w", lambda one: one["join"]["window"].update(every_ms=0), "is longer than the windows"),
        ("w", lambda one: one["join"]["window"].update(every_ms=1), "more than 100 windows"),
        ("w", lambda one: one["join"]["window"].update(type="session"), "does not fit the kind session"),
        ("w", lambda one: one["join"]["window"].update(size_ms=-1), "join.window.size_ms"),
        ("w", lambda one: one["join"].update(duplicates="all"), "every event counts"),
        ("w", lambda one: one["inputs"].append({"name": "b", "channel": "v/b"}), "collects events of one channel or filter"),
        ("q", lambda one: one.update(scale={"instances": 2}), "one instance"),
        ("q", lambda one: one.update(keyed={"by": "subject", "state": True}), "nothing is committed with `qos: 0`"),
        ("", lambda all: all.update(channels={"v/x": {"on_full": "drop-oldest"}}), "has no number to go by"),
        ("", lambda all: all.update(channels={"v/x": {"max_pending": 5}}), "channels.v/x.on_full: is missing"),
        ("", lambda all: all.update(channels={"other/x": {"on_full": "refuse", "gated": True}}), "outside the namespace"),
        ("", lambda all: all.update(channels={"v/out": {"on_full": "refuse", "gated": True}}), "'v/out' is gated"),
    ],
)  # fmt: skip
def test_a_resolved_manifest_from_elsewhere_is_checked_as_well(
    name: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert words in damaged(name, change)


# ------------------------------------------------------------------ contracts


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{subscribe: a, http: {port: 80}}", "http: belongs to `contract: http`"),
        ("{subscribe: a, command: [a]}", "command: with `contract: sdk` the SDK runs the handler"),
        ("{subscribe: a, contract: http, command: python a.py}", "is not a list of texts; write the program and its arguments"),
        ("{subscribe: a, contract: http, command: []}", "is not a list of texts"),
        ("{subscribe: a, contract: http, command: ['']}", "its program is empty"),
        ("{subscribe: a, contract: http, http: {port: 0}}", "http.port: 0: input should be greater than or equal to 1"),
        ("{subscribe: a, contract: http, http: {path: x}}", "http.path: 'x' is not a path; begin it with /"),
        ("{subscribe: a, contract: http, http: {ready: 'x y'}}", "http.ready: 'x y' is not a path"),
        ("{subscribe: a, contract: http, http: {format: xml}}", "http.format: 'xml' is not available; write one of binary, structured"),
        ("{subscribe: {channel: a, qos: 0}, contract: http}", "subscribe.qos: with `contract: http` the adapter commits"),
        ("{subscribe: a, contract: grpc}", "contract: 'grpc' is not available; write one of"),
        ("{subscribe: a, contract: http, http: {prot: 1}}", "unknown field; did you mean 'port'?"),
    ],
)  # fmt: skip
def test_contracts_refuse_what_does_not_go_with_them(body: str, words: str) -> None:
    fields = body[1:-1]
    text = f"namespace: v\nfunctions:\n  f: {{image: i, {fields}}}\n"
    with pytest.raises(BadManifest) as caught:
        parse(text, known_pops=["la"], default_pop="la")
    assert words in caught.value.message


def test_a_contract_is_part_of_the_content_and_checked_again() -> None:
    text = "namespace: v\nfunctions: {f: {image: i, subscribe: a, contract: http, command: [x, y], http: {ready: /up}}}"
    document = resolve(parse(text, default_pop="la"), {}, applied_ms=1, default_pop="la")
    function = document["functions"]["f"]
    assert function["command"] == ["x", "y"]
    assert function["http"] == {"port": 8080, "path": "/", "format": "binary", "ready": "/up"}
    assert check_resolved(document).functions["f"].http is not None
    function["contract"] = "sdk"
    function["revision"] = revision_of(function)
    with pytest.raises(BadManifest, match="belongs to `contract: http`"):
        check_resolved(document)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("subscribe: {join: [a, b]}", "subscribe.join: a program of `contract: mqtt` does its own subscribing"),
        ("subscribe: {channel: a, where: \"subject == 'x'\"}", "subscribe.where: a program of `contract: mqtt`"),
        ("subscribe: [a, _dead/+]", "dead letters are kept"),
        ("subscribe: a, latest: b", "latest: a program of `contract: mqtt`"),
        ("subscribe: a, state: {by: subject}", "state: a program of `contract: mqtt`"),
        ("subscribe: a, ordered: true", "ordered: a program of `contract: mqtt`"),
        ("subscribe: a, retry: {attempts: 2}", "retry: nothing is tried again with `contract: mqtt`"),
        ("subscribe: a, context: {m: k}", "context: a program of `contract: mqtt` is handed nothing"),
        ("subscribe: a, scale: {instances: 2}", "scale.instances: 2 programs would each hear every event"),
        ("subscribe: a, scale: {max: 2}", "scale.max: the one program hears the broker itself"),
        ("subscribe: a, limits: {outputs: 2}", "limits.outputs: nothing is committed with `contract: mqtt`"),
        ("subscribe: a, stdio: {content_type: a/b}", "stdio: belongs to `contract: stdio`"),
    ],
)
def test_a_program_with_a_session_of_its_own_is_refused_what_it_cannot_have(body: str, words: str) -> None:
    with pytest.raises(BadManifest) as caught:
        parse(f"namespace: v\nfunctions:\n  f: {{image: i, contract: mqtt, {body}}}\n", default_pop="la")
    assert words in caught.value.message


def test_what_an_mqtt_program_subscribes_to_goes_past_the_inbox() -> None:
    text = "namespace: v\nfunctions: {f: {image: i, subscribe: [a, 'b/+/{id}', {channel: c, as: d}], contract: mqtt, publish: o}}"
    with pytest.raises(BadManifest, match="ends with a wildcard"):
        parse(text, default_pop="la")
    text = text.replace("'b/+/{id}'", "b/x")
    document = resolve(parse(text, default_pop="la"), {}, applied_ms=1, default_pop="la")
    function = document["functions"]["f"]
    assert [one["qos"] for one in function["inputs"]] == [0, 0, 0] and check_resolved(document).functions["f"].direct
    del function["inputs"][0]["qos"], function["inputs"][1]["qos"], function["inputs"][2]["qos"]
    function["revision"] = revision_of(function)
    with pytest.raises(BadManifest, match="not heard by the program itself"):
        check_resolved(document)


@pytest.mark.parametrize("value", ["nothing", "a b/c", "image/"])
def test_a_media_type_is_one(value: str) -> None:
    with pytest.raises(BadManifest, match="is not a media type"):
        parse(
            f"namespace: v\nfunctions: {{f: {{image: i, subscribe: a, contract: stdio, stdio: {{content_type: '{value}'}}}}}}",
            default_pop="la",
        )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("subscribe: a, place: {pops: [la, la]}", "names a PoP twice"),
        ("subscribe: {channel: a, qos: 0}, place: {pops: [la, ny]}", "would hear every event at each of them"),
        (
            "subscribe: a, state: {by: subject}, place: {pops: [la, ny], run: local}",
            "would overwrite what the others keep",
        ),
        (
            "subscribe: a, state: {by: subject}, place: {pops: [la, ny], run: every}",
            "would overwrite what the others keep",
        ),
        ("subscribe: {join: {any: [a, b]}, by: subject}, place: {pops: [la, ny]}", "a join is one of all its channels"),
        (
            "subscribe: {join: {tumbling: 1s}, channel: a, by: subject}, place: {pops: [la, ny]}",
            "a join is one of all its channels",
        ),
        (
            "subscribe: {join: {collect: 2}, channel: a, by: subject}, place: {pops: [la, ny]}",
            "a join is one of all its channels",
        ),
        ("subscribe: a, place: {pops: [la, ny], run: twice}", "'twice' is not available"),
    ],
)
def test_what_cannot_run_at_several_pops_is_refused_by_name(function: str, words: str) -> None:
    with pytest.raises(BadManifest, match=words):
        parse(f"namespace: v\nfunctions: {{f: {{image: i, {function}}}}}")


@pytest.mark.parametrize(
    "function",
    [
        "subscribe: a, state: {by: subject}, place: {pops: [la, ny]}",
        "subscribe: {join: [a, b], by: subject}, place: {pops: [la, ny], run: once}",
        "subscribe: {join: {tumbling: 1s}, channel: a, by: subject}, place: {pops: [la, ny], run: local}",
        "subscribe: {join: {any: [a, b]}, by: subject}, place: {pops: [la, ny], run: every}",
    ],
)
def test_what_runs_at_several_pops(function: str) -> None:
    manifest = parse(f"namespace: v\nfunctions: {{f: {{image: i, {function}}}}}")
    resolved = resolve(manifest, {}, applied_ms=1)
    assert check_resolved(resolved).functions["f"].place.pops == ["la", "ny"]
