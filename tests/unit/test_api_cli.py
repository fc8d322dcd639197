"""The commands that talk to a PoP, over a real server and a store in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fakes import TOKEN, FakeNamespace, FakeStore, make_api, served
from typer.testing import CliRunner, Result

from edgeflow.cli import reach
from edgeflow.cli.main import app
from edgeflow.core.events import Event
from edgeflow.errors import Unavailable
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.layout import Home
from edgeflow.store.records import DeadLetter, Input, PendingJoin, Value


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.create_namespace("vision")
    return store


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    return store.namespace("vision")


@pytest.fixture(autouse=True)
def pops(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, PopAccess]]:
    (tmp_path / "token").write_text(TOKEN)
    with served(make_api(tmp_path, store)) as url:
        pops = {"chicago": access("chicago", url, tmp_path)}
        found = Cluster("c", "embedded", "ready", Home(tmp_path), pops)
        monkeypatch.setattr(reach, "find", lambda: found)
        yield pops


def access(pop: str, url: str, folder: Path) -> PopAccess:
    return PopAccess(pop, "ready", url, folder / "token", "h", 1, "ws://h", "operator", folder / "token")


def run(*arguments: str, status: int = 0, input: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=input)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def json_of(*arguments: str) -> Any:
    return json.loads(run(*arguments, "-o", "json").stdout)


class TestPublish:
    def test_text_and_receipt(self, vision: FakeNamespace) -> None:
        receipt = json_of(
            "publish", "vision/a", "--data", "hi", "--subject", "s", "-a", "chunk=7=8", "--id", "e1", "--put", "k"
        )
        assert (receipt["class"], receipt["origin"], receipt["id"]) == ("durable", "chicago", "e1")
        event = vision.arrivals[0].event
        assert (event.data, event.subject, dict(event.attributes)) == (b"hi", "s", {"chunk": "7=8"})
        assert vision.values["k"].data == b"hi"
        assert "durable at chicago/1/2" in run("publish", "vision/a", "-d", "x").stdout

    def test_files_and_standard_input(self, vision: FakeNamespace, tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(b"\x00\xff")
        run("publish", "vision/a", "--file", str(tmp_path / "clip.mp4"))
        run("publish", "vision/a", "--file", "-", input=b"\x01")
        first, second = (arrival.event for arrival in vision.arrivals)
        assert (first.data, first.datacontenttype) == (b"\x00\xff", "video/mp4")
        assert second.data == b"\x01"

    def test_references(self, vision: FakeNamespace) -> None:
        assert "waiting" in run("publish", "vision/a", "--dataref", "ekv:vision/later").stdout

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("--data", "x", "--file", "y"),
            ("--file", "/nowhere/x"),
            ("--data", "x", "--dataref", "ekv:vision/k"),
            ("-d", "x", "-a", "n"),
        ],
    )
    def test_wrong_use(self, arguments: tuple[str, ...], vision: FakeNamespace) -> None:
        run("publish", "vision/a", *arguments, status=2)
        assert not vision.arrivals

    def test_errors_have_a_hint(self) -> None:
        result = run("publish", "Vision/a", "-d", "x", status=1)
        assert "'Vision' is not a namespace" in result.stderr
        assert "hint:" in result.stderr
        assert not result.stdout


class TestTail:
    @pytest.fixture(autouse=True)
    def some(self, vision: FakeNamespace) -> None:
        for number, data in enumerate((b"text " * 100, b"\xff\xd8\xff" * 200, b"\x00" * 2_000_000, "ü".encode() * 300)):
            vision.release(Event("vision/a", f"e{number}", "s", "t", 0, data=data, subject=f"s{number}"))

    def test_lines(self) -> None:
        lines = run("tail", "vision/#", "--from", "start", "-n", "4").stdout.splitlines()
        assert [line.split("  ")[2] for line in lines] == ["s0", "s1", "s2", "s3"]
        assert lines[0].endswith("...")
        assert lines[1].endswith("600 B  bytes")
        assert "2.0 MB" in lines[2]
        assert "üüü" in lines[3]

    def test_json_lines(self) -> None:
        first, second = (
            json.loads(line)
            for line in run("tail", "vision/a", "--from", "start", "-n", "2", "-o", "json").stdout.splitlines()
        )
        assert (first["id"], first["cursor"][:10], first["data"][:5]) == ("e0", "chicago:1.", "text ")
        assert "data_base64" in second

    def test_durable(self, vision: FakeNamespace) -> None:
        first = run("tail", "vision/a", "--durable", "pager", "--from", "start", "-n", "2").stdout.splitlines()
        rest = run("tail", "vision/a", "--durable", "pager", "-n", "2").stdout.splitlines()
        assert [line.split("  ")[2] for line in first + rest] == ["s0", "s1", "s2", "s3"]

    def test_raw(self) -> None:
        assert run("tail", "vision/a", "--from", "chicago:1", "-n", "1", "--raw").stdout_bytes == b"\xff\xd8\xff" * 200

    def test_gaps(self, vision: FakeNamespace) -> None:
        vision.forget_released(1)
        result = run("tail", "vision/a", "--from", "start", "-n", "1")
        assert "gap: retention" in result.stderr
        assert "gap" not in result.stdout


class TestValues:
    def test_round_trip(self, tmp_path: Path) -> None:
        version = json_of("kv", "put", "vision/k/1", "-d", "value")["version"]
        assert run("kv", "get", "vision/k/1").stdout == "value"
        run("kv", "get", "vision/k/1", "--file", str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == b"value"
        assert [item["key"] for item in json_of("kv", "list", "vision/k")] == ["vision/k/1"]
        assert version in run("kv", "list", "vision/").stdout
        run("kv", "put", "vision/k/1", "-d", "x", "--if-absent", status=1)
        run("kv", "delete", "vision/k/1", "--if-version", version)
        assert "no value" in run("kv", "get", "vision/k/1", status=1).stderr
        run("kv", "delete", "vision/k/1", status=1)
        assert "no keys" in run("kv", "list", "vision/").stderr
        assert json_of("kv", "list", "vision/") == []

    def test_what_is_known_of_a_value(self, store: FakeStore, vision: FakeNamespace) -> None:
        version = json_of("kv", "put", "vision/k", "-d", "text", "--ttl", "60")["version"]
        shown = json_of("kv", "get", "vision/k")
        assert (shown["data"], shown["version"], shown["kind"]) == ("text", version, "register")
        vision.put("raw", b"\xff")
        assert json_of("kv", "get", "vision/raw")["data_base64"] == "/w=="
        assert json_of("kv", "head", "vision/k")["expires_ms"] == 1_700_000_060_000
        assert version in run("kv", "head", "vision/k").stdout
        run("kv", "head", "vision/none", status=1)
        assert run("kv", "get", "vision/k", "--version", version).stdout == "text"
        vision.losers["k"] = [Value("k", "1600000000000.00000@la", 4, None, None, b"lost", origin="la")]
        assert [one["current"] for one in json_of("kv", "versions", "vision/k")] == [True, False]
        assert "lost" in run("kv", "versions", "vision/k").stdout
        run("kv", "versions", "vision/none", status=1)

    def test_classes_and_consistency(self, store: FakeStore, vision: FakeNamespace) -> None:
        store.mailbox.answers["await"] = lambda args: {"confirmed": args["k"]}
        put = ("kv", "put", "vision/k", "-d", "x", "--durability", "replicated:1")
        assert json_of(*put)["class"] == "replicated:1"
        assert "replicated:1 chicago/1/" in run(*put).stdout
        assert "home" in run("kv", "get", "vision/k", "--strong", status=1).stderr
        assert "home" in run("kv", "put", "vision/k", "-d", "x", "--strong", status=1).stderr
        store.mailbox.answers["stand"] = store.mailbox.answers["sync"] = lambda _args: {
            "passed": [], "staleness_ms": 5000, "floor": "",
        }  # fmt: skip
        assert "5000 ms" in run("kv", "get", "vision/k", "--max-staleness", "1", status=1).stderr
        assert run("kv", "get", "vision/k", "--max-staleness", "10").stdout == "x"
        run("kv", "put", "vision/k", "-d", "x", "--durability", "fast", status=1)

    def test_counters_sets_and_maps(self, vision: FakeNamespace) -> None:
        assert json_of("kv", "incr", "vision/n", "--by", "5")["value"] == 5
        assert run("kv", "incr", "vision/n", "--by", "-2").stdout == "vision/n  3\n"
        assert json_of("kv", "set", "vision/s", "--add", "a", "--add", "b") == ["a", "b"]
        assert run("kv", "set", "vision/s", "--remove", "a", "--add", "c").stdout == "b\nc\n"
        assert json_of("kv", "map", "vision/m", "--set", "a=1", "--set", "b=x=y") == {"a": "1", "b": "x=y"}
        assert run("kv", "map", "vision/m", "--remove", "a").stdout == "b=x=y\n"
        assert "FIELD=VALUE" in run("kv", "map", "vision/m", "--set", "a", status=1).stderr
        assert "another type" in run("kv", "incr", "vision/s", status=1).stderr
        kinds = {item["key"]: item["kind"] for item in json_of("kv", "list", "vision/")}
        assert kinds == {"vision/m": "map", "vision/n": "counter", "vision/s": "set"}
        assert "counter" in run("kv", "list", "vision/").stdout

    def test_watch(self, vision: FakeNamespace) -> None:
        vision.put("a", b"1")
        vision.put("b", b"1")
        lines = run("kv", "watch", "vision/a", "-n", "2", "-o", "json").stdout.splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["change", "listed"]
        assert "-- 1 keys" in run("kv", "watch", "vision/a", "-n", "2").stdout

    def test_where_pops_stand(self, store: FakeStore, vision: FakeNamespace) -> None:
        receipt = json_of("kv", "put", "vision/k", "-d", "x")
        store.mailbox.answers["has"] = lambda args: {"has": args["seq"] == receipt["seq"]}
        store.mailbox.answers["stand"] = lambda _args: {"passed": [], "staleness_ms": 7, "floor": ""}
        place = f"{receipt['origin']}/{receipt['epoch']}/{receipt['seq']}"
        assert json_of("kv", "has", "vision", place, "--pop", "chicago") == [{"pop": "chicago", "applied": True}]
        assert "no" in run("kv", "has", "vision", "chicago/1/999", "--pop", "chicago").stdout
        assert "not a receipt" in run("kv", "has", "vision", "yesterday", status=1).stderr
        assert json_of("kv", "hash", "vision", "--pop", "chicago")[0]["staleness_ms"] == 7
        store.local.documents["link_state"] = {
            "la": {
                "state": "down", "entries_behind": 3, "bytes_behind": 9, "staleness_ms": 41, "relayed": 17, "snapshots_sent": 2, "last_error": "it is cut",
            }
        }  # fmt: skip
        peers = {"la": {"entries_behind": 1, "bytes_behind": 5, "complete_ms": None}}
        store.local.documents["lag"] = {
            "vision": {"staleness_ms": 77, "parked": 4, "log_bytes": 2048, "log_entries": 12, "forced_out": 6, "floor": "", "peers": peers}
        }  # fmt: skip
        (lag,) = [one for one in json_of("kv", "lag", "--pop", "chicago") if one["peer"] == "la"]
        assert (lag["peer"], lag["entries_behind"]) == ("la", 3)
        assert lag["namespaces"]["vision"] == {
            "staleness_ms": 77, "parked": 4, "log_bytes": 2048, "log_entries": 12, "forced_out": 6, "floor": "", **peers["la"],
        }  # fmt: skip
        links, _, namespaces = run("kv", "lag", "--pop", "chicago").stdout.partition("\n\n")
        titles, row, *_ = links.splitlines()
        assert [
            row[titles.index(title) :].split("  ")[0].strip() for title in ("STALENESS ms", "RELAYED", "SNAPSHOTS")
        ] == ["41", "17", "2"]
        assert row.rstrip().endswith("it is cut")
        titles, row = namespaces.splitlines()
        shown = [
            row[titles.index(title) :].split("  ")[0].strip()
            for title in ("NAMESPACE", "STALENESS ms", "PARKED", "FORCED OUT")
        ]
        assert shown == ["vision", "77", "4", "6"]

    def test_policies(self, store: FakeStore, vision: FakeNamespace) -> None:
        assert "no policies" in run("kv", "policy", "show", "vision").stderr
        run("kv", "policy", "set", "vision/models/", "--place", "pin:la,ny", "--home", "la")
        run("kv", "policy", "set", "vision/", "--place", "lazy")
        run("kv", "policy", "set", "vision/models/", "--place", "eager")
        rules = {rule["prefix"]: rule for rule in json_of("kv", "policy", "show", "vision")["rules"]}
        assert rules == {
            "": {"prefix": "", "place": "lazy"},
            "models/": {"prefix": "models/", "place": "eager", "home": "la", "term": 1},
        }
        assert json_of("kv", "policy", "show", "vision/models/x")["rules"][0]["home"] == "la"
        assert "models/" in run("kv", "policy", "show", "vision").stdout
        assert "kv policy move" in run("kv", "policy", "set", "vision/models/", "--home", "ny", status=1).stderr
        assert "which is no PoP" in run("kv", "policy", "set", "vision/x/", "--home", "mars", status=1).stderr
        run("kv", "policy", "set", "vision/x/", status=2)
        run("kv", "policy", "set", "vision", "--place", "lazy", status=1)

        def home(args: dict[str, Any]) -> dict[str, Any]:
            if args["pop"] == "la":
                raise Unavailable("the link to la is down")
            return {"origin": args["pop"], "epoch": 1, "seq": 0}

        store.mailbox.answers["home"] = home
        assert "cannot be reached" in run("kv", "policy", "move", "vision/models/", "--to", "ny", status=1).stderr
        run("kv", "policy", "move", "vision/models/", "--to", "ny", "--force", status=1)  # nobody to ask
        moved = run("kv", "policy", "move", "vision/models/", "--to", "ny", "--force", "--yes")
        assert "la -> ny, term 2" in moved.stdout
        assert "may be lost" in moved.stderr
        run("kv", "policy", "clear", "vision/models/")
        assert "has no rule" in run("kv", "policy", "clear", "vision/models/", status=1).stderr


class TestQuestions:
    def test_a_pop_that_is_down_is_named_and_skipped(self, pops: dict[str, PopAccess], tmp_path: Path) -> None:
        # Each question to all waits for this one.
        pops["la"] = access("la", "http://127.0.0.1:9", tmp_path)
        result = run("get", "pops")
        assert "chicago" in result.stdout
        assert "la does not answer" in result.stderr
        run("get", "pops", "--pop", "nowhere", status=1)

    def test_channels_and_joins(self, vision: FakeNamespace) -> None:
        run("publish", "vision/a", "-d", "x")
        assert json_of("get", "channels") == [{"channel": "vision/a", "events": {"chicago": 1}}]
        assert json_of("get", "channels", "-n", "other") == []
        vision.joins = [PendingJoin("classify", "clip/1", "all", ["frames"], 2, 1000, 2000)]
        assert json_of("get", "joins")[0]["key"] == "clip/1"
        assert "clip/1" in run("get", "joins").stdout
        assert json_of("get", "functions") == []

    def test_dead_letters(self, vision: FakeNamespace) -> None:
        event = Event("vision/frames", "e1", "s", "t", 0, data=b"x", subject="clip/1")
        vision.letters = [
            DeadLetter("d1234", "classify", "r", "failed", "ValueError: [red]no[/red]", 5, 5, (Input("frames", event),))
        ]
        assert json_of("dlq", "list", "vision")[0]["pop"] == "chicago"
        assert "[red]no[/red]" in run("dlq", "list").stdout
        shown = run("dlq", "show", "d12").stdout
        assert "vision/classify" in shown
        assert "clip/1" in shown
        assert json_of("dlq", "show", "d1234")["inputs"][0]["event"]["id"] == "e1"
        assert "no dead letter" in run("dlq", "show", "zzz", status=1).stderr
