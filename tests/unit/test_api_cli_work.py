"""The commands about work (invoke, dlq, replay, quota, get ...) over two served PoPs with stores in memory."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served
from typer.testing import CliRunner, Result

from edgeflow.cli import dlq, reach
from edgeflow.cli.main import app
from edgeflow.core.events import Event
from edgeflow.core.ids import invocation_id
from edgeflow.core.manifest import parse, resolve
from edgeflow.errors import CorruptEntry, QueueFull
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.layout import Home
from edgeflow.store.records import DeadLetter, Input, InvocationInfo, PendingJoin, Quota, ReplayDiff
from edgeflow.store.records import Result as Outcome
from edgeflow.store.sealed import Sealer, SecretBook

MANIFEST = """
namespace: vision
functions:
  detect: {image: vision/detect:1, subscribe: frames, publish: faces, place: {pops: [chicago]}}
  distant: {image: vision/distant:1, subscribe: frames, publish: far, place: {pops: [la]}}
"""


def make_store(pop: str) -> FakeStore:
    store = FakeStore(pop)
    store.create_namespace("vision")
    document = resolve(parse(MANIFEST), {}, applied_ms=1)
    store.namespace("system").put("manifests/vision", json.dumps(document).encode())
    return store


@pytest.fixture(scope="module")
def pops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, str]]]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "token").write_text(TOKEN)
    apis = {name: make_api(folder, FakeStore(name), pop=name) for name in ("chicago", "la")}
    with served(apis["chicago"]) as first, served(apis["la"]) as second:
        yield {"chicago": (apis["chicago"], first), "la": (apis["la"], second)}


@pytest.fixture(autouse=True)
def stores(pops: dict[str, tuple[Any, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeStore]:
    (tmp_path / "token").write_text(TOKEN)
    accesses, stores = {}, {}
    for name, (api, url) in pops.items():
        api.store = stores[name] = make_store(name)
        accesses[name] = PopAccess(name, "ready", url, tmp_path / "token", "h", 1, "ws://h", "operator", tmp_path / "token")  # fmt: skip
    found = Cluster("c", "embedded", "ready", Home(tmp_path), accesses)
    monkeypatch.setattr(reach, "find", lambda: found)
    return stores


@pytest.fixture
def here(stores: dict[str, FakeStore]) -> FakeNamespace:
    return stores["chicago"].namespace("vision")


@pytest.fixture
def there(stores: dict[str, FakeStore]) -> FakeNamespace:
    return stores["la"].namespace("vision")


def run(*arguments: str, status: int = 0, input: bytes | str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=input)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def json_of(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "-o", "json", status=status).stdout)


def first_id(function: str = "detect", pop: str = "chicago") -> str:
    return invocation_id(function, pop, 1, 1, 0)


def output(data: bytes, kind: str | None = None, channel: str = "vision/faces", subject: str | None = None) -> Event:
    return Event(channel, "o1", "/f", "t", 1_700_000_000_000, data=data, datacontenttype=kind, subject=subject)


class TestInvoke:
    def test_text_in_and_bytes_out(self, here: FakeNamespace) -> None:
        here.results[first_id()] = Outcome("committed", "", [output(b"\xff\xd8", "image/jpeg")])
        assert run("invoke", "vision/detect", "-d", "hi", "-s", "clip/ü", "-a", "chunk=7").stdout_bytes == b"\xff\xd8"
        event = here.arrivals[0].event
        assert (event.channel, event.data, event.subject) == ("vision/_invoke/detect", b"hi", "clip/ü")
        assert (event.datacontenttype, dict(event.attributes)) == ("text/plain; charset=utf-8", {"chunk": "7"})

    def test_files(self, here: FakeNamespace, tmp_path: Path) -> None:
        here.results[first_id()] = Outcome("committed")
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        result = run("invoke", "vision/detect", "--file", str(tmp_path / "a.png"))
        assert (result.stdout, "no output" in result.stderr) == ("", True)
        assert (here.arrivals[0].event.data, here.arrivals[0].event.datacontenttype) == (b"\x89PNG", "image/png")

    def test_json(self, here: FakeNamespace) -> None:
        here.results[first_id()] = Outcome("committed", "", [output(b'{"n":1}', "application/json", subject="s ü")])
        answer = json_of("invoke", "vision/detect", "-d", "x")
        assert answer["invocation"] == first_id()
        (one,) = answer["outputs"]
        assert (one["data"], one["subject"], one["channel"]) == ({"n": 1}, "s ü", "vision/faces")

    def test_several_outputs(self, here: FakeNamespace) -> None:
        here.results[first_id()] = Outcome("committed", "", [output(b"a" * 200, "text/plain"), output(b"\xff", None)])
        lines = run("invoke", "vision/detect", "-d", "x").stdout.splitlines()
        assert lines[0].startswith("vision/faces  -  aaa") and lines[0].endswith("...")
        assert lines[1].endswith("1 B")

    def test_a_whole_event(self, here: FakeNamespace, tmp_path: Path) -> None:
        here.results[first_id()] = here.results[invocation_id("detect", "chicago", 1, 2, 0)] = Outcome("committed")
        here.results[invocation_id("detect", "chicago", 1, 3, 0)] = Outcome("committed")
        document = {"specversion": "1.0", "id": "old", "source": "/cam", "type": "frame", "subject": "s", "data": {"n": 1}, "chunk": "7", "seq": 9}  # fmt: skip
        (tmp_path / "e.json").write_text(json.dumps(document))
        run("invoke", "vision/detect", "--event", str(tmp_path / "e.json"))
        run("invoke", "vision/detect", "--event", "-", "--id", "mine", input=json.dumps(document))
        first, second = (arrival.event for arrival in here.arrivals)
        assert (first.source, first.subject, first.data, dict(first.attributes)) == (
            "/cam",
            "s",
            b'{"n":1}',
            {"chunk": "7"},
        )
        assert first.id != "old"
        assert second.id == "mine"

    def test_an_event_as_tail_prints_it(self, here: FakeNamespace) -> None:
        line = {
            "cursor": "chicago:1", "channel": "vision/faces", "id": "o1", "source": "/f", "type": "t", "time": "2026-01-02T03:04:05.006Z", "subject": "s",
            "datacontenttype": "application/json", "attributes": {"chunk": "7"}, "origin": "chicago", "epoch": 1, "seq": 1, "data": '{"n":1}',
        }  # fmt: skip
        here.results[first_id()] = Outcome("committed")
        run("invoke", "vision/detect", "--event", "-", input=json.dumps(line))
        event = here.arrivals[0].event
        assert (event.data, event.datacontenttype, event.subject, event.source) == (
            b'{"n":1}',
            "application/json",
            "s",
            "/f",
        )

    def test_at_another_pop(self, there: FakeNamespace) -> None:
        there.results[first_id("detect", "la")] = Outcome("committed", "", [output(b"yes", "text/plain")])
        assert run("invoke", "vision/detect", "-d", "x", "--pop", "la").stdout == "yes"

    def test_no_result(self, here: FakeNamespace) -> None:
        here.results[first_id()] = Outcome("dead", "handler-failed")
        result = run("invoke", "vision/detect", "-d", "x", status=3)
        assert "handler-failed" in result.stderr
        assert "edgeflow dlq show" in result.stderr
        assert not result.stdout

    def test_too_late(self, here: FakeNamespace) -> None:
        assert "edgeflow get invocation" in run("invoke", "vision/detect", "--timeout", "50ms", status=4).stderr

    def test_a_name_alone_is_enough_where_only_one_function_has_it(self, here: FakeNamespace) -> None:
        here.results[first_id()] = Outcome("committed", "", [output(b"yes", "text/plain")])
        assert run("invoke", "detect", "-d", "x").stdout == "yes"
        assert "no function is called 'nope'" in run("invoke", "nope", "-d", "x", status=1).stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ("vision/detect/x",), ("vision/detect", "-d", "x", "-f", "y"), ("vision/detect", "--event", "-", "-d", "x"), ("vision/detect", "-a", "n"),
        ],
    )  # fmt: skip
    def test_wrong_use(self, arguments: tuple[str, ...], here: FakeNamespace) -> None:
        run("invoke", *arguments, status=2)
        assert not here.arrivals

    @pytest.mark.parametrize(("function", "word"), [("Vision/x", "Vision"), ("vision/nope", "detect, distant")])
    def test_what_is_not_there(self, function: str, word: str) -> None:
        assert word in run("invoke", function, "-d", "x", status=1).stderr

    def test_an_event_that_is_none(self) -> None:
        assert "not JSON" in run("invoke", "vision/detect", "--event", "-", input="{", status=1).stderr
        assert "object" in run("invoke", "vision/detect", "--event", "-", input="[]", status=1).stderr


def letter(number: int, function: str = "detect", reason: str = "handler-failed") -> DeadLetter:
    event = Event("vision/frames", f"e{number}", "s", "t", 0, data=b"x")
    return DeadLetter(
        f"{function[:2]}{number:04d}",
        function,
        "r",
        reason,
        "ValueError: no",
        1000 + number,
        5,
        (Input("frames", event),),
    )


class TestDeadLetters:
    @pytest.fixture(autouse=True)
    def some(self, here: FakeNamespace, there: FakeNamespace) -> None:
        here.letters = [letter(n, reason="timeout" if n > 2 else "handler-failed") for n in range(5)]
        there.letters = [letter(n, "distant") for n in range(3)]

    def test_list(self) -> None:
        items = json_of("dlq", "list")
        assert len(items) == 8
        assert {(item["pop"], item["function"]) for item in items} == {("chicago", "detect"), ("la", "distant")}
        assert len(json_of("dlq", "list", "vision", "--reason", "timeout")) == 2
        assert [item["pop"] for item in json_of("dlq", "list", "--function", "vision/distant", "--limit", "1")] == [
            "la"
        ]
        assert "no function 'nope'" in run("dlq", "list", "--function", "vision/nope", status=1).stderr
        assert json_of("dlq", "list", "other") == []

    def test_redrive_by_id_finds_the_pop(self, here: FakeNamespace, there: FakeNamespace) -> None:
        assert json_of("dlq", "redrive", "de0001", "di0002") == {"redriven": 2, "failed": []}
        assert (here.redriven, there.redriven) == (["de0001"], ["di0002"])
        assert "zzz" in run("dlq", "redrive", "zzz", status=1).stderr

    def test_redrive_what_matches(self, here: FakeNamespace, there: FakeNamespace) -> None:
        assert "2 redriven" in run("dlq", "redrive", "--function", "vision/detect", "--reason", "timeout").stdout
        assert (len(here.redriven), there.redriven) == (2, [])
        assert json_of("dlq", "redrive", "--all")["redriven"] == 6

    def test_what_cannot_be_redriven_is_named(self, here: FakeNamespace) -> None:
        here.stuck["de0003"] = CorruptEntry("it is damaged")
        result = run("dlq", "redrive", "--all", status=1)
        assert "7 redriven, 1 failed" in result.stdout
        assert "de0003: it is damaged (corrupt-entry)" in result.stderr
        failed = json_of("dlq", "redrive", "de0003", status=1)["failed"]
        assert failed == [{"pop": "chicago", "id": "de0003", "code": "corrupt-entry", "detail": "it is damaged"}]

    def test_a_full_queue_is_waited_for(self, here: FakeNamespace) -> None:
        here.stuck["de0001"] = QueueFull("full", retry_after_s=0.2)
        threading.Timer(0.5, here.stuck.clear).start()
        assert json_of("dlq", "redrive", "--function", "vision/detect")["redriven"] == 5

    def test_one_that_stays_full_is_named(self, here: FakeNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dlq, "STUCK_S", 0.1)
        here.stuck["de0001"] = QueueFull("the inbox of function detect is full", retry_after_s=0.2)
        stopped = run("dlq", "redrive", "--function", "vision/detect", status=1)
        assert "1 redriven, the others stay where they are: the inbox of function detect is full" in stopped.stderr
        assert here.redriven == ["de0000"] and here.dead_letter("de0001") is not None

    def test_a_function_elsewhere_with_a_pop_named(self) -> None:
        result = run("dlq", "redrive", "--function", "vision/distant", "--pop", "chicago", status=1)
        assert "kept at PoP la" in result.stderr

    def test_purge_asks(self, here: FakeNamespace) -> None:
        result = run("dlq", "purge", "--all", status=1)
        assert "Remove 8 dead letters" in result.stderr
        assert "5 of vision at chicago, 3 of vision at la" in result.stderr
        assert "--yes" in result.stderr
        assert len(here.letters) == 5

    def test_purge(self, here: FakeNamespace, there: FakeNamespace) -> None:
        assert "1 removed" in run("dlq", "purge", "de0000").stdout
        assert json_of("dlq", "purge", "--reason", "timeout", "--yes") == {"purged": 2}
        assert [one.id for one in here.letters] == ["de0001", "de0002"]
        assert json_of("dlq", "purge", "--older-than", "1h", "-y") == {"purged": 5}
        assert json_of("dlq", "purge", "--all", "-y") == {"purged": 0}
        run("dlq", "purge", "de0001", status=1)

    @pytest.mark.parametrize("verb", ["redrive", "purge"])
    @pytest.mark.parametrize(
        "arguments", [(), ("-n", "vision"), ("--older-than", "soon"), ("--function", "a/b", "-n", "c")]
    )
    def test_wrong_use(self, verb: str, arguments: tuple[str, ...], here: FakeNamespace) -> None:
        run("dlq", verb, *arguments, status=2)
        assert len(here.letters) == 5


class TestReplay:
    def test_it_starts_where_the_function_is(self, here: FakeNamespace, there: FakeNamespace) -> None:
        info = json_of("replay", "vision/frames", "--into", "distant@abc", "--from", "1h", "--shadow")
        assert (info["state"], info["revision"], info["shadow"]) == ("running", "abc", True)
        assert len(there.asked_replays) == 1
        assert not here.asked_replays
        assert json_of("get", "replays")[0]["pop"] == "la"
        assert "distant@abc" in run("get", "replays", "-n", "vision").stdout
        assert "0 read" in run("get", "replay", info["id"]).stdout
        assert "cancelled" in run("replay", "--cancel", info["id"]).stdout
        assert json_of("get", "replay", info["id"])["state"] == "cancelled"

    def test_follow_to_the_end(self, here: FakeNamespace, wait_until: Callable[..., Any]) -> None:
        def work() -> None:
            wait_until(lambda: here.all_replays, "the replay")
            for read, done in ((5, 2), (9, 5)):
                here.all_replays["r1"] = replace(here.all_replays["r1"], read=read, invoked=9, committed=done)
            here.diffs = [
                ReplayDiff(f"i{n}", None if n == 0 else [], [output(b"x", "text/plain")], n != 1) for n in range(4)
            ]
            here.all_replays["r1"] = replace(here.all_replays["r1"], state="done", committed=8, dead=1)

        worker = threading.Thread(target=work)
        worker.start()
        document = json_of("replay", "vision/frames", "--into", "vision/detect", "--shadow", "--follow")
        worker.join()
        assert (document["state"], document["committed"], document["same"]) == ("done", 8, 2)
        assert (document["different"], document["unrecorded"]) == (["i1"], 1)
        shown = run("get", "replay", "r1", "--diff").stdout
        assert "i1" in shown and "i2" not in shown
        assert len(json_of("get", "replay", "r1", "--diff")) == 4

    def test_an_interrupt_cancels(self, here: FakeNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("edgeflow.cli.replay.time.sleep", interrupted)
        result = run("replay", "vision/frames", "--into", "detect", "--follow", status=130)
        assert "is cancelled" in result.stderr
        assert here.all_replays["r1"].state == "cancelled"

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("vision/frames",),
            ("--into", "detect"),
            ("vision/frames", "--into", "other/detect"),
            ("vision/frames", "--cancel", "r1"),
        ],
    )
    def test_wrong_use(self, arguments: tuple[str, ...]) -> None:
        run("replay", *arguments, status=2)

    def test_what_is_not_there(self) -> None:
        assert "no function" in run("replay", "vision/frames", "--into", "nope", status=1).stderr
        assert "from" in run("replay", "vision/frames", "--into", "detect", "--from", "x", status=1).stderr
        assert "no replay" in run("replay", "--cancel", "r9", status=1).stderr
        assert "no replay" in run("get", "replay", "r9", status=1).stderr
        assert (
            "kept at PoP la" in run("replay", "vision/frames", "--into", "distant", "--pop", "chicago", status=1).stderr
        )


class TestQuota:
    def test_set_show_clear(self, here: FakeNamespace) -> None:
        assert "no namespace has a quota" in run("quota", "show").stderr
        set_text = run(
            "quota", "set", "vision", "--events-per-s", "100", "--bytes-per-s", "2Mi", "--burst-s", "5"
        ).stdout
        assert "100 events/s and 2,097,152 bytes/s, 5 s at once" in set_text
        assert here.allowed == Quota(100, 2_097_152, 5)
        assert json_of("quota", "show")[0]["events_per_s"] == 100
        assert "2,097,152" in run("quota", "show", "vision").stdout
        run("quota", "clear", "vision")
        assert here.allowed is None
        assert "quota show" in run("quota", "clear", "vision", status=1).stderr

    @pytest.mark.parametrize("arguments", [(), ("--bytes-per-s", "much"), ("--events-per-s", "0")])
    def test_wrong_use(self, arguments: tuple[str, ...]) -> None:
        run("quota", "set", "vision", *arguments, status=2)


class TestSecrets:
    @pytest.fixture(autouse=True)
    def key(self, pops: dict[str, tuple[Any, str]], monkeypatch: pytest.MonkeyPatch) -> None:
        api = pops["chicago"][0]
        book = SecretBook(lambda: api.namespace_for_write("system"), Sealer("k" * 43, "c"))
        monkeypatch.setattr(api, "secrets", book)

    def test_set_list_remove(self, tmp_path: Path) -> None:
        with_key = run("secret", "set", "vision/token", input=b"hunter2")
        assert with_key.stdout == "vision/token: 7 bytes kept\n"
        (tmp_path / "value").write_bytes(b"hunter3")
        assert "7 bytes" in run("secret", "set", "vision/token", "--file", str(tmp_path / "value")).stdout
        (item,) = json_of("secret", "list", "vision")
        assert item["name"] == "token" and "hunter" not in json.dumps(item)
        run("secret", "rm", "vision/token")
        assert "secret list vision" in run("secret", "rm", "vision/token", status=1).stderr
        assert "has no secrets" in run("secret", "list", "vision").stderr

    def test_wrong_use(self) -> None:
        assert "names no secret" in run("secret", "set", "token", input=b"x", status=1).stderr
        assert "is empty" in run("secret", "set", "vision/token", input=b"", status=1).stderr


class TestFailures:
    def test_the_last_failure_of_a_function_is_shown(self, stores: dict[str, FakeStore]) -> None:
        failure = {
            "reason": "timeout",
            "detail": "the handler did not return within 500 ms",
            "at_ms": int(time.time() * 1000) - 5000,
        }
        stores["chicago"].local.documents = {
            "function_stats": {"vision/detect": {"failed": 1, "last_failure": failure}}
        }
        shown = run("get", "functions").stdout
        assert re.search(r"timeout [56] s ago: the handler did not return within 500 ms", shown)


class TestQuestions:
    def test_an_invocation_is_put_together_from_both_pops(self, here: FakeNamespace, there: FakeNamespace) -> None:
        here.results["i1"] = Outcome("committed", "", [output(b"yes", "text/plain")])
        there.infos["i1"] = InvocationInfo("i1", "distant", "r1", "committed", 2, 1, 1000)
        found = json_of("get", "invocation", "i1")
        assert (found["pop"], found["function"], found["result"]["outputs"][0]["data"]) == ("la", "distant", "yes")
        text = run("get", "invocation", "i1", "-n", "vision").stdout
        assert "2, 1 failed" in text
        assert "output    vision/faces" in text
        assert "no invocation" in run("get", "invocation", "i2", status=1).stderr

    def test_joins(self, here: FakeNamespace, there: FakeNamespace) -> None:
        here.joins = [PendingJoin("classify", "clip/1", "all", ["frames"], 2, 1000, 2000, ["faces"])]
        there.joins = [PendingJoin("mean", "s", "window", ["3"], 0, 900, 1500, [], (0, 10_000))]
        text = run("get", "joins").stdout
        assert "faces" in text
        assert "00:00:00.000 - 00:00:10.000" in text
        assert [item["missing"] for item in json_of("get", "joins")] == [[], ["faces"]]

    def test_a_counter_is_a_value(self, here: FakeNamespace) -> None:
        here.counts["seen"] = 42
        assert run("kv", "get", "vision/seen").stdout == "42"
