"""The manifest: its YAML form, its resolved form, and what is refused with which words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core import manifest as manifests
from edgeflow.core import manifest_models as models
from edgeflow.core.manifest import Artifact, check_resolved, parse, resolve, revision_of
from edgeflow.core.routing import compile_routes
from edgeflow.errors import BadManifest

POPS = ["chicago", "la", "ny"]


def problems(text: str | dict[str, Any], **more: Any) -> list[str]:
    """The lines of the error that this manifest causes."""
    with pytest.raises(BadManifest) as caught:
        parse(text, **{"known_pops": POPS, "default_pop": "la", **more})
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


def of_function(body: str, **more: Any) -> list[str]:
    """Problems of a function f with these fields (on line 4 and below), besides `build` and `subscribe`."""
    return problems(f"namespace: vision\nfunctions:\n  f:\n    {body}\n    build: ./f\n    subscribe: frames\n", **more)


def resolved(text: str, **artifacts: Artifact) -> dict[str, Any]:
    return resolve(parse(text, known_pops=POPS, default_pop="la"), artifacts, applied_ms=7, default_pop="la")


APPLICATION = """
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
"""


def test_a_full_manifest_resolves_to_what_pops_read() -> None:
    document = resolved(APPLICATION, classify=Artifact(bundle="c" * 64))
    assert document["namespace"] == "vision" and document["applied_ms"] == 7
    classify = document["functions"]["classify"]
    assert classify == {
        "revision": revision_of(classify),
        "contract": "sdk",
        "bundle": "c" * 64,
        "image": None,
        "inputs": [{"name": "frames", "channel": "vision/frames"}, {"name": "found", "channel": "vision/deep/faces"}],
        "join": {"kind": "all", "by": "subject", "count": None, "within_ms": 10_000, "on_timeout": "drop"},
        "publish": ["vision/matches", "vision/notes"],
        "context": {"model": "models/person-of-interest"},
        "retry": {"attempts": 2, "backoff_ms": 1500, "timeout_ms": 60_000},
        "limits": {"cpus": 0.5, "memory": "1Gi"},
        "env": {"MODE": "fast"},
        "scale": {"instances": 2},
        "place": {"pops": ["ny"]},
    }
    check_resolved(document, known_pops=POPS)


def test_defaults_are_the_documented_ones() -> None:
    detect = resolved(APPLICATION, classify=Artifact(bundle="c" * 64))["functions"]["detect"]
    assert detect["image"] == "d" and detect["bundle"] is None and detect["join"] is None
    assert detect["retry"] == {"attempts": 5, "backoff_ms": 200, "timeout_ms": 30_000}
    assert detect["limits"] == {"cpus": 1.0, "memory": "512Mi"}
    assert (
        detect["scale"] == {"instances": 1}
        and detect["place"] == {"pops": ["la"]}
        and detect["env"] == {}
        and detect["context"] == {}
    )


def test_every_form_of_subscribe() -> None:
    functions = resolved(APPLICATION, classify=Artifact(bundle="c" * 64))["functions"]
    assert functions["assemble"]["join"] == {
        "kind": "collect",
        "by": "chunk",
        "count": "total",
        "within_ms": 200,
        "on_timeout": "dead-letter",
    }
    assert functions["assemble"]["inputs"] == [{"name": "augmented", "channel": "vision/augmented"}]
    assert functions["both"]["inputs"] == [
        {"name": "frames", "channel": "vision/frames"},
        {"name": "left", "channel": "vision/cam/left-eye"},
    ]
    assert functions["both"]["join"] is None
    assert functions["named"]["inputs"] == [{"name": "picture", "channel": "vision/frames"}]
    assert manifests.input_name("vision/cam/left-eye") == "left_eye"
    assert manifests.input_name("vision/depth/3d-points") == "_3d_points"


def test_qos_0_stands_at_its_input() -> None:
    text = "namespace: vision\nfunctions:\n  f: {image: i, subscribe: {channel: cam/left-eye, qos: 0}, retry: {timeout: 5s}}"
    document = resolved(text)
    assert document["functions"]["f"]["inputs"] == [{"name": "left_eye", "channel": "vision/cam/left-eye", "qos": 0}]
    assert check_resolved(document).functions["f"].direct
    more = json.loads(json.dumps(document))
    more["functions"]["f"]["scale"] = {"instances": 2}
    more["functions"]["f"]["revision"] = revision_of(more["functions"]["f"])
    with pytest.raises(BadManifest, match="`qos: 0` goes with one channel, no join and one instance"):
        check_resolved(more)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("scale: {concurrency: 2}", "functions.f.scale.concurrency"),
        ("scale: {prefetch: 4}", "functions.f.scale.prefetch"),
        ("place: {pops: [la], near: paris}", "functions.f.place.near"),
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(field: str, path: str) -> None:
    (line,) = of_function(field)
    assert line.startswith(f"line 4: {path}: not available in this version; ")


def test_a_value_that_is_not_there_yet_is_refused_by_name() -> None:
    (line,) = of_function("qos: 0")
    assert "not available in this version; " in line and line.startswith("line 4: functions.f.")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            "where: {type: x}",
            "functions.f.where: belongs to the subscription: subscribe: {channel: <channel>, where: ...}",
        ),
        ("window: 10s", "functions.f.window: belongs to the subscription: subscribe: {join: {tumbling: 10s}"),
        ("windows: 10s", "functions.f.windows: belongs to the subscription"),
        ("join: [a, b]", "functions.f.join: belongs to the subscription"),
        ("gated: true", "functions.f.gated: belongs to the channel: channels: {<channel>: {gated: true}}"),
        ("deadline: 2s", "functions.f.deadline: belongs to the channel"),
        ("max_pending: 3", "functions.f.max_pending: belongs to the channel"),
        ("on_full: refuse", "functions.f.on_full: belongs to the channel"),
        ("deliver: [la]", "functions.f.deliver: belongs to the channel, and is not available in this version"),
        ("latest: {channel: a, as: x, where: y}", "functions.f.latest.where: side inputs are not filtered"),
        ("latest: [{channel: a, qos: 0}]", "functions.f.latest.0.qos: side inputs are kept"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_where_it_goes(field: str, words: str) -> None:
    assert any(line.startswith(f"line 4: {words}") for line in of_function(field)), of_function(field)


BAD: list[tuple[str, str]] = [
    ("bild: ./x", "functions.f.bild: unknown field; did you mean 'build'?"),
    ("scale: {instances: 0}", "functions.f.scale.instances: 0: input should be greater than or equal to 1"),
    ("scale: {instances: two}", "functions.f.scale.instances: is 'two'; write a whole number"),
    (
        "publish: /other/faces",
        "functions.f.publish: '/other/faces' is outside the namespace 'vision' (it names 'other')",
    ),
    ("publish: other/faces", "'other' is another namespace"),
    ("publish: a//b", "has an empty level"),
    ("publish: _dead", "is reserved"),
    ("publish: [faces, faces]", "functions.f.publish: channel 'vision/faces' stands here twice"),
    ("publish: {a: b}", "is not a channel"),
    ("image: x:1", "functions.f.image: stands beside build; keep one of them"),
    ("image: 'two words'", "is not an image name"),
    ("place: {pops: [paris]}", "functions.f.place.pops.0: PoP 'paris' does not exist; there are chicago, la, ny"),
    ("place: {pops: []}", "functions.f.place.pops: names no PoP"),
    ("place: {}", "functions.f.place.pops: is missing"),
    ("retry: {timeout: 10}", "functions.f.retry.timeout: 10 is not a duration; write a number with ms, s, m or h"),
    ("retry: {backoff: 0s}", "out of range"),
    ("retry: {attempts: 0}", "functions.f.retry.attempts"),
    ("limits: {memory: 512}", "functions.f.limits.memory: 512 is not a size"),
    ("limits: {memory: 1Mi}", "too little"),
    ("limits: {cpus: 0}", "not a number of CPUs"),
    ("limits: {pids: 2}", "2 is not a number of processes"),
    ("limits: {pids: many}", "'many' is not a number of processes"),
    ("limits: {tmpfs: 1Ki}", "too little to be of use"),
    ("limits: {log: 12}", "12 is not a size"),
    ("limits: {outputs: 0}", "0 is not a number of events"),
    ("limits: {output_bytes: lots}", "'lots' is not a size"),
    ("limits: {disk: 1Gi}", "unknown field"),
    ("network: bridge", "'bridge' is not available; write one of egress, none"),
    ("gpus: 0", "0 is not available; write all, or how many"),
    ("gpus: some", "'some' is not available; write all, or how many"),
    ("secrets: [../x]", "'../x' is not the name of a secret"),
    ("secrets: [a, a]", "'a' stands here twice"),
    ("secrets: key", "write a list"),
    ("env: {PORT: 80}", 'functions.f.env.PORT: is 80; write text; put it in quotes: "80"'),
    ("env: {EDGEFLOW_SOCKET: x}", "is reserved"),
    ("env: {a b: x}", "is not the name of an environment variable"),
    ("context: {a-b: k}", "cannot be read as ctx.context.<name>"),
    ("context: {a: 'k/#'}", "holds +, #, $"),
    ("f: [", "is not YAML"),
]


@pytest.mark.parametrize(("field", "words"), BAD)
def test_bad_fields_name_place_and_fix(field: str, words: str) -> None:
    lines = of_function(field, known_namespaces=["other", "vision"])
    assert any(words in line for line in lines), lines
    assert all(line.startswith("line ") for line in lines)


SUBSCRIBE: list[tuple[str, str]] = [
    ("{join: [frames]}", "functions.f.subscribe.join: joins one channel only"),
    ("{join: []}", "names no channel"),
    ("[]", "names no channel"),
    ("[a/x, b/x]", "two inputs are named 'x'; rename one with"),
    ("[x, x]", "channel 'vision/x' stands here twice"),
    ("{join: [class, b]}", "cannot be the name of a handler's parameter; give one with `as:`"),
    ("{join: [{channel: a, as: class}, b]}", "cannot be the name of a handler's parameter"),
    ("{join: [a, b], by: id}", "differs from event to event"),
    ("{join: [a, b], by: A_B}", "is not the name of an event attribute"),
    ("{join: [a, b], within: soon}", "is not a duration"),
    ("{join: [a, b], on_timeout: ignore}", "'ignore' is not available; write one of dead-letter, drop, partial"),
    ("{join: {collect: n}, channel: a}", "functions.f.subscribe.by: is missing"),
    ("{join: {collect: n}, by: chunk}", "functions.f.subscribe.channel: is missing"),
    ("{join: {count: n}, channel: a, by: chunk}", "functions.f.subscribe.join.collect: is missing"),
    ("{as: a}", "functions.f.subscribe.channel: is missing"),
    (
        "{channel: a, as: x, where: y}",
        "functions.f.subscribe.where: 'y' is text, neither true nor false; compare it, as in y == 'yes'",
    ),
    ("{channel: a, qos: 2}", "functions.f.subscribe.qos: 2 is not available; write 0"),
    ("{channel: a, qos: false}", "functions.f.subscribe.qos: False is not available; write 0"),
    (
        "[{channel: a, as: x, qos: 0}, b]",
        "functions.f.subscribe.0.qos: not available in this version; `qos: 0` is for functions with one channel",
    ),
    (
        "{join: [a, b], qos: 0}",
        "functions.f.subscribe.qos: not available in this version; what waits for other events is kept, so a join is durable",
    ),
    ("{join: {collect: n}, channel: a, by: c, qos: 0}", "functions.f.subscribe.qos: not available in this version"),
    ("{join: [{channel: a, as: x, qos: 0}, b]}", "functions.f.subscribe.join.0.qos: not available in this version"),
    (
        "{channel: a, qos: 0}, scale: {instances: 2}",
        "functions.f.scale.instances: 2 instances would each hear every event with `qos: 0`",
    ),
    ("{channel: a, qos: 0}, retry: {attempts: 2}", "functions.f.retry.attempts: nothing is tried again with `qos: 0`"),
    ("{channel: a, qos: 0}, retry: {backoff: 1s}", "functions.f.retry.backoff: nothing is tried again with `qos: 0`"),
    ("a, qos: 0", "functions.f.qos: 0 is not available in this version; it belongs to the channel"),
    ("'#'", "channel 'vision/#' ends with a wildcard or a capture; name the handler's parameter with `as:`"),
    ("''", "is not a channel"),
]


@pytest.mark.parametrize(("subscribe", "words"), SUBSCRIBE)
def test_bad_subscriptions(subscribe: str, words: str) -> None:
    lines = problems(f"namespace: vision\nfunctions:\n  f: {{image: i, subscribe: {subscribe}}}\n")
    assert any(words in line for line in lines), lines


WHOLE: list[tuple[str | dict[str, Any], str]] = [
    ("", "is not a map"),
    ("- a", "is not a map"),
    ("namespace: vision", "functions: is missing"),
    ("functions: {f: {image: i, subscribe: a}}", "namespace: is missing"),
    ("namespace: Vision\nfunctions: {f: {image: i, subscribe: a}}", "use 1 to 63 of a-z, 0-9 and -"),
    ("namespace: system\nfunctions: {f: {image: i, subscribe: a}}", "belongs to edgeflow"),
    ("namespace: vision\nfunctions: {}", "functions: is empty"),
    ("namespace: vision\nfunctions: [a]", "functions: is a list; write a map"),
    ("namespace: vision\nfunctions: {f: }", "functions.f: is empty; write a map of fields"),
    ("namespace: vision\nfunctions: {A b: {image: i, subscribe: a}}", "is not a function name"),
    ("namespace: vision\nfunctions: {f: {subscribe: a}}", "functions.f: has nothing to run; give the folder"),
    ("namespace: vision\nfunctions: {f: {image: i}}", "functions.f.subscribe: is missing"),
    ("namespace: a\nnamespace: b\nfunctions: {f: {image: i, subscribe: a}}", "namespace: stands here twice"),
    ("namespace: a\nfunctions: {1: {image: i, subscribe: a}}", "is not text as a key"),
    ("a: &a [*a, *a]\nb: !!python/object:os.system x", "is not YAML"),
    ({"namespace": "a", "functions": {"f": {"image": "i"}}}, "functions.f.subscribe: is missing"),
    (
        "namespace: v\nfunctions: {f: {image: i, subscribe: a}}\nspeed: 1",
        "speed: unknown field; here are possible: channels, functions, namespace",
    ),
]


@pytest.mark.parametrize(("text", "words"), WHOLE)
def test_bad_documents(text: str | dict[str, Any], words: str) -> None:
    lines = problems(text)
    assert any(words in line for line in lines), lines


def test_all_problems_come_at_once_with_their_lines() -> None:
    text = """namespace: vision
functions:
  a:
    subscribe: {join: [frames]}
    scale: {prefetch: 2}
  b:
    build: ./missing
    subscribe: frames
    retry: {timeout: 5}
"""
    look: Callable[[str, bool], str | None] = lambda folder, _: f"the folder {folder} does not exist; create it"  # noqa: E731
    lines = problems(text, look=look)
    assert [line.split(": ")[0] for line in lines] == ["line 3", "line 4", "line 5", "line 7", "line 9"]


def test_a_function_without_place_needs_a_default() -> None:
    lines = problems("namespace: v\nfunctions: {f: {image: i, subscribe: a}}", default_pop=None)
    assert lines == ["line 2: functions.f.place: is missing; name one PoP: place: {pops: [<pop>]}"]


def test_a_name_that_starts_with_the_own_namespace_is_taken_as_it_is() -> None:
    document = resolved("namespace: vision\nfunctions: {f: {image: i, subscribe: vision/frames}}")
    assert document["functions"]["f"]["inputs"][0]["channel"] == "vision/frames"


def test_deeply_shared_yaml_ends_quickly() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    assert any("unknown field" in line for line in problems(text))


def test_the_revision_follows_the_content_and_nothing_else() -> None:
    text = "namespace: v\nfunctions: {f: {image: i, subscribe: a, scale: {instances: %d}, retry: {attempts: %d}}}"
    one, more, other = (resolved(text % values)["functions"]["f"]["revision"] for values in ((1, 5), (3, 5), (1, 4)))
    assert one == more != other
    assert len(one) == 12 and set(one) <= set("0123456789abcdef")


def test_confinement_is_in_the_resolved_form_only_where_something_is_said() -> None:
    plain = resolved("namespace: v\nfunctions: {f: {image: i, subscribe: a}}")["functions"]["f"]
    assert not plain.keys() & {"network", "gpus", "secrets"} and plain["limits"] == {"cpus": 1.0, "memory": "512Mi"}
    same = resolved("namespace: v\nfunctions: {f: {image: i, subscribe: a, network: none, secrets: []}}")["functions"][
        "f"
    ]
    assert same["revision"] == plain["revision"]
    text = "{image: i, subscribe: a, network: egress, gpus: all, secrets: [b, a], limits: {pids: 9, outputs: 3, output_bytes: 1Mi}}"
    document = resolved(f"namespace: v\nfunctions: {{f: {text}}}")
    function = document["functions"]["f"]
    assert (function["network"], function["gpus"], function["secrets"]) == ("egress", "all", ["b", "a"])
    assert function["limits"] == {"cpus": 1.0, "memory": "512Mi", "pids": 9, "outputs": 3, "output_bytes": "1Mi"}
    assert check_resolved(document).functions["f"].limits.pids == 9
    route = compile_routes(document, "la").current("f")
    assert route is not None and (route.max_outputs, route.max_output_bytes) == (3, 1 << 20)


def test_outputs_are_not_counted_with_qos_0() -> None:
    lines = problems(
        "namespace: v\nfunctions: {f: {image: i, subscribe: {channel: a, qos: 0}, limits: {outputs: 3}, place: {pops: [la]}}}"
    )
    assert any("functions.f.limits.outputs: nothing is committed with `qos: 0`" in line for line in lines)


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    document = resolved("namespace: v\nfunctions: {f: {image: i, subscribe: a, publish: b}}")
    change(document["functions"]["f"])
    with pytest.raises(BadManifest) as caught:
        check_resolved(document, known_pops=POPS)
    return caught.value.message


def test_a_resolved_manifest_from_elsewhere_is_not_trusted() -> None:
    assert "does not belong to this content" in damaged(lambda function: function.update(revision="0" * 12))
    assert "outside the namespace 'v'" in damaged(lambda function: function.update(publish=["other/b"]))
    assert "neither bundle nor image" in damaged(lambda function: function.update(image=None))
    assert "is not a SHA-256" in damaged(lambda function: function.update(bundle="../../etc"))
    assert "does not exist" in damaged(lambda function: function["place"].update(pops=["paris"]))
    assert "unknown field" in damaged(lambda function: function.update(extra=1))
    assert "two inputs are named" in damaged(
        lambda function: function["inputs"].append({"name": "a", "channel": "v/c"})
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["namespace", "functions", "f", "subscribe", "join", "by", "channel", "place", "pops", "scale", "image", "collect", "as"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_no_data_makes_parsing_fail_in_any_other_way(data: Any) -> None:
    try:
        parse({"namespace": "v", "functions": data} if not isinstance(data, dict) else data, known_pops=POPS)
    except BadManifest as error:
        assert error.message


@given(st.text(max_size=200))
def test_no_text_makes_parsing_fail_in_any_other_way(text: str) -> None:
    with pytest.raises(BadManifest):
        parse(text)


def test_the_shipped_schema_is_current() -> None:
    shipped = json.loads((Path(manifests.__file__).parent / "manifest.schema.json").read_text())
    assert shipped == manifests.json_schema(), (
        "write it again: python -m edgeflow.core.manifest > edgeflow/core/manifest.schema.json"
    )


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "manifest.md"


def test_every_field_is_documented() -> None:
    text = DOCUMENT.read_text()
    names = {"retry", "limits", "scale", "place"}
    parts = [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, models.Part)]
    for model in parts:
        names |= {field.alias or name for name, field in model.model_fields.items()}
    names |= {name.rpartition(".")[2] for name in (*manifests.NOT_AVAILABLE, *manifests.MISPLACED)}
    assert sorted(name for name in names if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)) == []


def test_the_documented_example_is_valid() -> None:
    example = DOCUMENT.read_text().split("```yaml\n")[1].split("```")[0]
    assert parse(example, known_pops=POPS).namespace == "vision"


@pytest.mark.parametrize(
    ("field", "resolved"),
    [
        ("scale: {instances: 3}", {"instances": 3}),
        ("scale: {min: 0}", {"min": 0, "max": 1, "idle_ms": 60_000, "pool": 1}),
        ("scale: {max: 4, idle: 5s}", {"min": 1, "max": 4, "idle_ms": 5_000, "pool": 0}),
        ("scale: {min: 2, pool: 3, max: 3}", {"min": 2, "max": 3, "idle_ms": 60_000, "pool": 3}),
    ],
)
def test_scale_is_a_number_or_a_range(field: str, resolved: dict[str, int]) -> None:
    text = f"namespace: app\nfunctions:\n  f: {{image: i, subscribe: a, {field}}}\n"
    document = resolve(parse(text, default_pop="la"), {}, applied_ms=1, default_pop="la")
    assert document["functions"]["f"]["scale"] == resolved
    check_resolved(document)


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("scale: {instances: 2, max: 3}", "functions.f.scale.instances: stands beside min and max"),
        ("scale: {idle: 5s}", "functions.f.scale.idle: goes with a number that follows the work"),
        ("scale: {min: 3, max: 2}", "functions.f.scale.min: 3 is more than max, 2"),
        ("scale: {max: 2, pool: 3}", "functions.f.scale.pool: 3 is more than max, 2"),
    ],
)
def test_what_does_not_go_together_in_scale_is_refused(field: str, problem: str) -> None:
    (line,) = of_function(field)
    assert problem in line


@pytest.mark.parametrize("how", ["contract: mqtt, subscribe: a", "subscribe: {channel: a, qos: 0}"])
def test_what_hears_the_broker_itself_does_not_follow_the_work(how: str) -> None:
    lines = problems(f"namespace: app\nfunctions:\n  f: {{image: i, {how}, scale: {{min: 0}}}}\n", default_pop="la")
    assert [line for line in lines if "functions.f.scale.min: the one" in line]
