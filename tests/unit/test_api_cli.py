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
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.layout import Home
from edgeflow.store.records import DeadLetter, Input, PendingJoin


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.create_namespace("vision")
    return store


@pytest.fixture
def vision(store: FakeStore) -> FakeNamespace:
    return store.namespace("vision")


@pytest.fixture(autouse=True)
def cluster(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "token").write_text(TOKEN)
    with served(make_api(tmp_path, store)) as url:
        pops = {}
        for name, address in (("chicago", url), ("la", "http://127.0.0.1:9")):
            pops[name] = PopAccess(
                name, "ready", address, tmp_path / "token", "h", 1, "ws://h", "operator", tmp_path / "token"
            )
        found = Cluster("c", "embedded", "ready", Home(tmp_path), pops)
        monkeypatch.setattr(reach, "find", lambda: found)
        yield


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


class TestQuestions:
    def test_a_pop_that_is_down_is_named_and_skipped(self) -> None:
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
