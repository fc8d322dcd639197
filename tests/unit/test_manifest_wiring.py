"""How functions are wired: every form of subscription, side input, key, template and policy in its resolved form, and revisions that stay."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core import channels
from edgeflow.core.manifest import Artifact, check_resolved, parse, resolve, revision_of
from edgeflow.errors import BadManifest

ROOT = Path(__file__).resolve().parents[2]


def resolved(text: str | dict[str, Any]) -> dict[str, Any]:
    manifest = parse(text, default_pop="la")
    artifacts = {name: Artifact(image="i") for name in manifest.functions}
    document = resolve(manifest, artifacts, applied_ms=1, default_pop="la")
    check_resolved(json.loads(json.dumps(document)), known_pops=["la"])
    return document


def function(fields: str) -> dict[str, Any]:
    """The resolved function f with these fields."""
    document = resolved(f"namespace: v\nfunctions:\n  f: {{image: i, {fields}}}\n  other: {{image: i, subscribe: x}}\n")
    return dict(document["functions"]["f"])


JOIN = {"by": "subject", "count": None, "within_ms": 60_000, "on_timeout": "dead-letter"}
WINDOW = {"kind": "window", "by": "subject", "count": None, "within_ms": 10_000, "on_timeout": "partial"}
WINDOWED = "channel: readings, by: subject"


@pytest.mark.parametrize(
    ("subscribe", "inputs", "join"),
    [
        ("frames", [{"name": "frames", "channel": "v/frames"}], None),
        ("{channel: frames}", [{"name": "frames", "channel": "v/frames"}], None),
        ("cam/{id}/frames", [{"name": "frames", "channel": "v/cam/+/frames", "captures": {"id": 2}}], None),
        ("'+/frames'", [{"name": "frames", "channel": "v/+/frames"}], None),
        ("{channel: 'raw/#', as: anything}", [{"name": "anything", "channel": "v/raw/#"}], None),
        ("{channel: 'room/{id}', as: it}", [{"name": "it", "channel": "v/room/+", "captures": {"id": 2}}], None),
        (
            "{channel: cam/{id}/frames, where: 'data.size > `10`', as: picture}",
            [{"name": "picture", "channel": "v/cam/+/frames", "captures": {"id": 2}, "where": "data.size > `10`"}],
            None,
        ),
        (
            "[frames, {channel: 'cam/+/alerts', as: alert}, _dead/other]",
            [
                {"name": "frames", "channel": "v/frames"},
                {"name": "alert", "channel": "v/cam/+/alerts"},
                {"name": "other", "channel": "v/_dead/other"},
            ],
            None,
        ),
        ("{channel: _dead/+, as: letter}", [{"name": "letter", "channel": "v/_dead/+"}], None),
        ("{channel: 'cam/+/frames', qos: 0}", [{"name": "frames", "channel": "v/cam/+/frames", "qos": 0}], None),
        (
            "{channel: 'cam/{id}/#', qos: 0, as: it}",
            [{"name": "it", "channel": "v/cam/+/#", "captures": {"id": 2}, "qos": 0}],
            None,
        ),
        (
            "{join: [a, b]}",
            [{"name": "a", "channel": "v/a"}, {"name": "b", "channel": "v/b"}],
            {"kind": "all", **JOIN},
        ),
        (
            "{join: [a, {channel: b, where: \"level == '1'\"}], where: \"type == 'x'\", by: captures || data.key, on_timeout: partial, "
            "duplicates: all, max_pending: 5}",
            [
                {"name": "a", "channel": "v/a", "where": "type == 'x'"},
                {"name": "b", "channel": "v/b", "where": "(type == 'x') && (level == '1')"},
            ],
            {
                "kind": "all",
                **JOIN,
                "by": "captures || data.key",
                "on_timeout": "partial",
                "duplicates": "all",
                "max_pending": 5,
            },
        ),
        (
            "{join: {any: [left, right]}, within: 2s}",
            [{"name": "left", "channel": "v/left"}, {"name": "right", "channel": "v/right"}],
            {"kind": "k", **JOIN, "within_ms": 2000, "k": 1},
        ),
        (
            "{join: {k: 2, of: [a, b, c]}, by: chunk, duplicates: last, on_timeout: drop}",
            [{"name": name, "channel": f"v/{name}"} for name in "abc"],
            {"kind": "k", **JOIN, "by": "chunk", "on_timeout": "drop", "k": 2, "duplicates": "last"},
        ),
        (
            "{join: {collect: 5}, channel: x, by: subject}",
            [{"name": "x", "channel": "v/x"}],
            {"kind": "collect", **JOIN, "count": 5},
        ),
        (
            "{join: {collect: total}, channel: x, as: parts, by: chunk}",
            [{"name": "parts", "channel": "v/x"}],
            {"kind": "collect", **JOIN, "by": "chunk", "count": "total"},
        ),
        (
            "{join: {collect: data.total}, channel: 'a/{id}/x', by: captures.id, where: data.ok}",
            [{"name": "x", "channel": "v/a/+/x", "captures": {"id": 2}, "where": "data.ok"}],
            {"kind": "collect", **JOIN, "by": "captures.id", "count": "data.total"},
        ),
        (
            f"{{join: {{tumbling: 10s}}, {WINDOWED}, lateness: 2s, idle: 3s, within: 4s, on_timeout: drop}}",
            [{"name": "readings", "channel": "v/readings"}],
            {
                **WINDOW,
                "within_ms": 4000,
                "on_timeout": "drop",
                "window": {
                    "type": "tumbling",
                    "size_ms": 10_000,
                    "every_ms": 10_000,
                    "lateness_ms": 2000,
                    "idle_ms": 3000,
                },
            },
        ),
        (
            f"{{join: {{sliding: 10s, every: 2s}}, {WINDOWED}}}",
            [{"name": "readings", "channel": "v/readings"}],
            {
                **WINDOW,
                "window": {"type": "sliding", "size_ms": 10_000, "every_ms": 2000, "lateness_ms": 0, "idle_ms": 10_000},
            },
        ),
        (
            f"{{join: {{session: 30s}}, {WINDOWED}, lateness: 0s}}",
            [{"name": "readings", "channel": "v/readings"}],
            {
                **WINDOW,
                "window": {"type": "session", "size_ms": 30_000, "every_ms": 0, "lateness_ms": 0, "idle_ms": 10_000},
            },
        ),
    ],
)
def test_every_form_of_subscribe(subscribe: str, inputs: list[dict[str, Any]], join: dict[str, Any] | None) -> None:
    found = function(f"subscribe: {subscribe}")
    assert found["inputs"] == inputs and found["join"] == join
    assert "latest" not in found and "keyed" not in found


def test_side_inputs() -> None:
    latest = "latest: [settings, {channel: 'calibration/{cam}', as: calibration, by: captures.cam}]"
    found = function(f"subscribe: 'cam/{{cam}}/frames', {latest}")
    assert found["latest"] == [
        {"name": "settings", "channel": "v/settings"},
        {"name": "calibration", "channel": "v/calibration/+", "captures": {"cam": 2}, "by": "captures.cam"},
    ]
    assert function("subscribe: a, latest: settings")["latest"] == [{"name": "settings", "channel": "v/settings"}]
    assert "latest" not in function("subscribe: a, latest: []")


@pytest.mark.parametrize(
    ("fields", "keyed"),
    [
        ("state: {by: subject}", {"by": "subject", "state": True}),
        ("state: {by: data.user}", {"by": "data.user", "state": True}),
        ("ordered: true", {"by": "subject", "state": False}),
        ("ordered: {by: user}", {"by": "user", "state": False}),
        ("ordered: {}", {"by": "subject", "state": False}),
        ("ordered: false", None),
        ("state: {by: subject}, ordered: false", {"by": "subject", "state": True}),
    ],
)
def test_keys(fields: str, keyed: dict[str, Any] | None) -> None:
    assert function(f"subscribe: a, {fields}").get("keyed") == keyed


def test_templates() -> None:
    found = function("subscribe: 'cam/{id}/frames', publish: ['cam/{id}/faces', 'log/+/{id}', plain]")
    assert found["publish"] == ["v/cam/{id}/faces", "v/log/+/{id}", "v/plain"]


def test_policies() -> None:
    document = resolved("""
namespace: v
channels:
  frames: {max_pending: 1000, on_full: keep-latest, deadline: 2s}
  raw/#: {gated: true}
  v/cam/+/live: {max_pending: 5}
functions: {f: {image: i, subscribe: frames}}
""")
    assert document["channels"] == {
        "v/frames": {"on_full": "keep-latest", "max_pending": 1000, "deadline_ms": 2000},
        "v/raw/#": {"on_full": "refuse", "gated": True},
        "v/cam/+/live": {"on_full": "refuse", "max_pending": 5},
    }


def test_policies_are_no_part_of_revisions() -> None:
    text = "namespace: v\nfunctions: {f: {image: i, subscribe: frames}}"
    with_policy = f"channels: {{frames: {{deadline: 2s}}}}\n{text}"
    assert resolved(text)["functions"] == resolved(with_policy)["functions"]
    assert "channels" not in resolved(text)


# ------------------------------------------------------------------ revisions

PRESENT = {
    "extract": "0279919e38ad",
    "detect": "9d6af654b888",
    "classify": "8f10b0361ec2",
    "augment": "01145d7e9df4",
    "assemble": "8b1e9a47937d",
}


def test_the_video_application_keeps_its_revisions() -> None:
    manifest = parse((ROOT / "functions" / "edgeflow.yaml").read_text())
    bundles = {name: Artifact(bundle=f"{index:02x}" * 32) for index, name in enumerate(manifest.functions)}
    document = resolve(manifest, bundles, applied_ms=1)
    assert {name: one["revision"] for name, one in document["functions"].items()} == PRESENT


def test_forms_that_were_there_before_keep_their_revisions() -> None:
    text = """
namespace: vision
functions:
  detect: {image: d, subscribe: frames, publish: faces}
  classify:
    build: ./classify
    subscribe: {join: [frames, {channel: deep/faces, as: found}], by: subject, within: 10s, on_timeout: drop}
    publish: [matches, vision/notes]
    context: {model: models/person-of-interest}
    retry: {attempts: 2, backoff: 1.5s, timeout: 1m}
    limits: {cpus: 0.5, memory: 1Gi}
    env: {MODE: fast}
    scale: {instances: 2}
    place: {pops: [ny], run: once}
  assemble: {image: a, subscribe: {join: {collect: total}, channel: augmented, by: chunk, within: 200ms}}
  both: {image: b, subscribe: [frames, {channel: cam/left-eye, as: left}]}
  named: {image: n, subscribe: {channel: frames, as: picture}}
  direct: {image: i, subscribe: {channel: cam/left-eye, qos: 0}, retry: {timeout: 5s}}
"""
    manifest = parse(text, default_pop="la")
    document = resolve(manifest, {"classify": Artifact(bundle="c" * 64)}, applied_ms=1, default_pop="la")
    assert {name: one["revision"] for name, one in document["functions"].items()} == {
        "detect": "fe3a420d314f", "classify": "593b531b1dbd", "assemble": "583c24038007", "both": "b4e45a70ff76", "named": "33becebc0671",
        "direct": "425b8371928e",
    }  # fmt: skip


def test_what_is_new_is_part_of_the_revision() -> None:
    forms = [
        "subscribe: a", "subscribe: {channel: a, where: data.ok}", "subscribe: a, latest: s", "subscribe: a, latest: {channel: s, by: subject}",
        "subscribe: a, state: {by: subject}", "subscribe: a, ordered: true", "subscribe: {join: [a, b]}", "subscribe: {join: {any: [a, b]}}",
        "subscribe: {join: [a, b], duplicates: all}", "subscribe: {join: [a, b], max_pending: 5}", "subscribe: {join: [a, b], on_timeout: partial}",
    ]  # fmt: skip
    revisions = [function(fields)["revision"] for fields in forms]
    assert len(set(revisions)) == len(forms)
    assert function("subscribe: {join: [a, b], duplicates: first, max_pending: 10000}")["revision"] == revisions[6]


# ------------------------------------------------------------------ any of it

NAMES = st.sampled_from(["a", "b", "c", "cam/{id}/x", "cam/{id}/y", "left/+/z", "deep/raw/w"])
MS = st.sampled_from(["1ms", "5s", "1m"])
WHERE = st.sampled_from(["data.ok", "type == 'x'", "length(subject) > `1`"])
NAMED = st.fixed_dictionaries({"channel": NAMES}, optional={"where": WHERE, "as": st.sampled_from(["p", "q", "r"])})
SEVERAL = st.lists(NAMES | NAMED, min_size=1, max_size=4)
COMMON = {"where": WHERE, "max_pending": st.integers(1, 100)}
KEYED = COMMON | {"by": st.sampled_from(["subject", "chunk", "data.k"]), "within": MS}
CHOICES = {
    "on_timeout": st.sampled_from(["drop", "partial", "dead-letter"]),
    "duplicates": st.sampled_from(["first", "last", "all"]),
}
WINDOW_SHAPES = (
    st.fixed_dictionaries({"tumbling": MS}) | st.fixed_dictionaries({"sliding": MS, "every": MS}) | st.fixed_dictionaries({"session": MS})
)  # fmt: skip
GATHERED = {"channel": NAMES, "by": st.sampled_from(["subject", "captures.id", "data.k"])}
SUBSCRIBE = (
    NAMES | NAMED | SEVERAL
    | st.fixed_dictionaries({"join": SEVERAL}, optional=KEYED | CHOICES)
    | st.fixed_dictionaries({"join": st.fixed_dictionaries({"any": SEVERAL})}, optional=KEYED)
    | st.fixed_dictionaries({"join": st.fixed_dictionaries({"k": st.integers(1, 4), "of": SEVERAL})}, optional=KEYED | CHOICES)
    | st.fixed_dictionaries({"join": st.fixed_dictionaries({"collect": st.integers(1, 9) | st.just("data.n")})} | GATHERED, optional=COMMON)
    | st.fixed_dictionaries({"join": WINDOW_SHAPES} | GATHERED, optional=COMMON | {"lateness": st.just("0s") | MS, "idle": MS, "within": MS})
)  # fmt: skip
FUNCTION = st.fixed_dictionaries(
    {"image": st.just("i"), "subscribe": SUBSCRIBE},
    optional={"latest": st.lists(st.sampled_from(["s", "t/{id}/u"]), max_size=2), "state": st.fixed_dictionaries({"by": GATHERED["by"]}),
              "ordered": st.booleans(), "publish": st.lists(st.sampled_from(["out", "out/{id}", "log/+"]), max_size=3)},
)  # fmt: skip


@given(
    FUNCTION,
    st.dictionaries(
        st.sampled_from(["a", "cam/#", "left/+/z"]), st.fixed_dictionaries({"gated": st.just(True)}), max_size=3
    ),
)
def test_whatever_is_accepted_is_accepted_in_its_resolved_form(one: dict[str, Any], policies: dict[str, Any]) -> None:
    try:
        document = resolved({"namespace": "v", "channels": policies, "functions": {"f": one}})
    except BadManifest as error:
        assert "resolved manifest" not in error.message, error.message
        return
    found = document["functions"]["f"]
    assert found["revision"] == revision_of(found)
    for item in (*found["inputs"], *found.get("latest", ())):
        assert channels.check_filter(item["channel"]) and item["channel"].startswith("v/")
