"""Calling functions, dead letters, replays and quotas over HTTP and by commands, on two real PoPs."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.cli.main import app
from edgeflow.errors import AtAnotherPop, EdgeflowError, QuotaExceeded
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(240)]
Wait = Callable[..., Any]

HANDLERS = {
    "echo": """
import time
from edgeflow import function


@function
def handle(ctx, words):
    text = words.text()
    if text == "none":
        return None
    if text == "many":
        ctx.emit("loud", b"one", subject="1")
        ctx.emit("loud", {"two": 2}, subject="2")
        return None
    if text == "boom":
        raise ValueError("no such word")
    if text.startswith("slow"):
        time.sleep(2)
    return text.upper()
""",
    "distant": """
from edgeflow import function


@function
def handle(ctx, far):
    ctx.ekv.increment("calls")
    if far.subject == "large":
        return far.data + b"!"
    return {"size": len(far.data), "subject": far.subject}
""",
    "keyed": """
from edgeflow import function


@function
def handle(ctx, keyed):
    ctx.state["n"] = ctx.state.get("n", 0) + 1
    return ctx.state["n"]
""",
    "pair": """
from edgeflow import function


@function
def handle(ctx, left, right):
    return left.text() + right.text()
""",
    "switch": """
from edgeflow import function


@function
def handle(ctx, jobs):
    if ctx.ekv.get("switch") is None:
        raise ValueError("the switch is off")
    return jobs.text()
""",
    "narrow": """
import time
from edgeflow import function


@function
def handle(ctx, trickle):
    time.sleep(0.1)
""",
    "scale": """
from edgeflow import function


@function
def handle(ctx, numbers):
    n = numbers.json()
    return n * FACTOR if n % 2 else n
""",
    "price": """
from edgeflow import function


@function
def handle(ctx, orders):
    return orders.json() * FACTOR
""",
}
MANIFEST = """
namespace: work
channels:
  trickle: {max_pending: 5}
functions:
  echo: {build: ./echo, subscribe: words, publish: loud, place: {pops: [chicago]}, retry: {attempts: 1}}
  distant: {build: ./distant, subscribe: far, publish: sizes, place: {pops: [la]}}
  keyed: {build: ./keyed, subscribe: keyed, publish: counts, state: {by: subject}, place: {pops: [chicago]}}
  pair: {build: ./pair, subscribe: {join: [left, right], within: 60s}, publish: pairs, place: {pops: [la]}}
  switch: {build: ./switch, subscribe: jobs, publish: done, place: {pops: [la]}, retry: {attempts: 1}}
  narrow: {build: ./narrow, subscribe: trickle, publish: drops, place: {pops: [chicago]}}
  scale: {build: ./scale, subscribe: numbers, publish: scaled, place: {pops: [la]}}
  price: {build: ./price, subscribe: orders, publish: priced, place: {pops: [la]}}
"""


def write_app(folder: Path, factor: int) -> Path:
    for name, source in HANDLERS.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "handler.py").write_text(source.replace("FACTOR", str(factor)))
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    return folder / "edgeflow.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def cluster(programs: None, folder: Path) -> Iterator[LocalCluster]:
    with LocalCluster(["chicago", "la"]) as running:
        access = running.pop("chicago")
        apply_file(write_app(folder, 2), Target(access.api_url, access.token), timeout_s=120)
        yield running


@pytest.fixture(scope="module")
def clients(cluster: LocalCluster) -> Iterator[dict[str, Operator]]:
    found = {pop: Operator(cluster.pop(pop).api_url, cluster.pop(pop).token, retry_s=20) for pop in ("chicago", "la")}
    yield found
    for client in found.values():
        client.close()


@pytest.fixture(autouse=True)
def home(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLOW_HOME", str(cluster.home.root))


def run(*arguments: str, status: int = 0, input: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=input)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def json_of(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "-o", "json", status=status).stdout)


def call(
    cluster: LocalCluster, pop: str, function: str, data: bytes, timeout: str = "30s", **headers: str
) -> httpx.Response:
    access = cluster.pop(pop)
    return httpx.post(
        f"{access.api_url}/v1/functions/work/{function}/invoke", params={"timeout": timeout}, content=data,
        headers={"Authorization": f"Bearer {access.token}", **{f"ce-{name}": value for name, value in headers.items()}},
        timeout=60, trust_env=False,
    )  # fmt: skip


def outputs(client: Client, channel: str) -> list[Any]:
    """All that was published on a channel so far, as (id, data)."""
    mark = client.publish("work/marks", b"")
    found = []
    for event in client.subscribe("work/#", from_="start"):
        if not isinstance(event, Gap):
            if event.id == mark.id:
                return found
            if event.channel == f"work/{channel}":
                found.append((event.id, event.data))
    raise AssertionError("the stream ended")


class TestInvoke:
    @pytest.mark.parametrize("pop", ["chicago", "la"])
    def test_a_function_here_and_elsewhere(self, cluster: LocalCluster, pop: str) -> None:
        answer = call(cluster, pop, "echo", b"hello", subject="s1")
        assert (answer.status_code, answer.content, answer.headers["ce-channel"]) == (200, b"HELLO", "work/loud")
        assert (answer.headers["ce-origin"], answer.headers["ce-subject"]) == ("chicago", "s1")
        answer = call(cluster, pop, "distant", b"\x00" * 300_000, subject="s2")
        assert answer.json() == {"size": 300_000, "subject": "s2"}
        assert answer.headers["ce-origin"] == "la"

    @pytest.mark.parametrize("pop", ["chicago", "la"])
    def test_a_large_output_comes_whole(self, cluster: LocalCluster, pop: str) -> None:
        """Its body travels behind the entry that ends the invocation."""
        for _ in range(5):
            assert (
                call(cluster, pop, "distant", b"\xff" * 3_000_000, subject="large").content
                == b"\xff" * 3_000_000 + b"!"
            )

    @pytest.mark.parametrize("pop", ["chicago", "la"])
    def test_none_and_several(self, cluster: LocalCluster, pop: str) -> None:
        assert call(cluster, pop, "echo", b"none").status_code == 204
        answer = call(cluster, pop, "echo", b"many")
        assert answer.headers["content-type"] == "application/cloudevents-batch+json"
        assert [(one["subject"], one.get("data", one.get("data_base64"))) for one in answer.json()] == [
            ("1", "b25l"),
            ("2", {"two": 2}),
        ]

    @pytest.mark.parametrize("pop", ["chicago", "la"])
    def test_given_up(self, cluster: LocalCluster, clients: dict[str, Operator], pop: str) -> None:
        problem = call(cluster, pop, "echo", b"boom").json()
        assert (problem["status"], problem["code"], problem["reason"]) == (502, "invocation-dead", "handler-failed")
        letter = clients["chicago"].dead_letter("work", problem["dead_letter"])
        assert letter is not None and "no such word" in letter["detail"]
        assert clients["chicago"].purge("work", letter["id"])

    @pytest.mark.parametrize("pop", ["chicago", "la"])
    def test_an_event_without_the_key_is_told_at_once(
        self, cluster: LocalCluster, clients: dict[str, Operator], pop: str
    ) -> None:
        begin_s = time.monotonic()
        problem = call(cluster, pop, "keyed", b"x").json()
        assert (problem["code"], problem.get("reason")) == ("invocation-dead", "no-key"), problem
        assert time.monotonic() - begin_s < 10
        assert clients["chicago"].purge("work", problem["dead_letter"])
        assert [call(cluster, pop, "keyed", b"x", subject=f"{pop}").json() for _ in range(2)] == [1, 2]

    def test_it_goes_on_when_nobody_waits(
        self, cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait
    ) -> None:
        problem = call(cluster, "la", "echo", b"slow one", timeout="300ms").json()
        assert problem["code"] == "invocation-pending"
        id = problem["invocation"]
        view = wait_until(
            lambda: (found := clients["la"].invocation("work", id)) and found["result"] and found, "the result at la"
        )
        assert view["result"]["outputs"][0]["data"] == "SLOW ONE"
        found = json_of("get", "invocation", id)
        assert (found["pop"], found["state"], found["function"]) == ("chicago", "committed", "echo") or found[
            "state"
        ] == "committed"

    def test_the_state_while_it_works(
        self, cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait
    ) -> None:
        id = call(cluster, "chicago", "echo", b"slow two", timeout="300ms").json()["invocation"]
        view = wait_until(
            lambda: (found := clients["chicago"].invocation("work", id)) and found["state"] == "claimed" and found,
            "it is worked on",
        )
        assert (view["function"], view["attempt"], view["result"]) == ("echo", 1, None)
        assert view["by"]
        assert "claimed by" in run("get", "invocation", id).stdout
        wait_until(lambda: (found := clients["chicago"].invocation("work", id)) and found["result"], "the result")

    def test_an_id_of_ones_own_is_called_once_per_function(self, cluster: LocalCluster) -> None:
        headers = {"id": "mine", "source": "/test"}
        first = call(cluster, "chicago", "distant", b"12", **headers)
        again = call(cluster, "chicago", "distant", b"12", **headers)
        assert first.headers["edgeflow-invocation"] == again.headers["edgeflow-invocation"]
        assert first.headers["ce-id"] == again.headers["ce-id"]
        other = call(cluster, "chicago", "echo", b"12", **headers)
        assert other.content == b"12"
        assert other.headers["edgeflow-invocation"] != first.headers["edgeflow-invocation"]

    def test_many_at_once(self, cluster: LocalCluster) -> None:
        answers: dict[int, httpx.Response] = {}

        def ask(number: int) -> None:
            answers[number] = call(cluster, "la", "distant" if number % 2 else "echo", b"x" * number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 61)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in answers.items():
            assert answer.json()["size"] == number if number % 2 else answer.content == b"X" * number

    def test_the_asked_pop_restarts_its_control_process(
        self, cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait
    ) -> None:
        """The same id again gives the result of the first call."""
        done: list[httpx.Response] = []

        def ask() -> None:
            while not done:
                try:
                    answer = call(cluster, "chicago", "echo", b"slow three", id="once", source="/kill")
                    if answer.status_code == 200:
                        done.append(answer)
                except httpx.TransportError:
                    time.sleep(0.05)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: clients["chicago"].function("work", "echo")["inbox"]["claimed"], "it is worked on")
        cluster.kill("chicago", "control")
        asking.join(60)
        assert done[0].content == b"SLOW THREE"
        cluster.wait_ready()
        with Operator(cluster.pop("chicago").api_url, cluster.pop("chicago").token) as client:
            assert len([data for _, data in outputs(client, "loud") if data == b"SLOW THREE"]) == 1

    def test_commands(self, cluster: LocalCluster, tmp_path: Path) -> None:
        assert run("invoke", "work/echo", "-d", "hello").stdout == "HELLO"
        assert run("invoke", "work/echo", "-d", "hello", "--pop", "la").stdout == "HELLO"
        assert json_of("invoke", "work/distant", "-d", "abc", "-s", "s")["outputs"][0]["data"] == {
            "size": 3,
            "subject": "s",
        }
        assert "no output" in run("invoke", "work/echo", "-d", "none").stderr
        (tmp_path / "event.json").write_text(json.dumps({"data": "text", "datacontenttype": "text/plain"}))
        assert run("invoke", "work/echo", "--event", str(tmp_path / "event.json")).stdout == "TEXT"
        assert "joins" in run("invoke", "work/pair", "-d", "x", status=1).stderr


class TestDeadLetters:
    def test_many_are_redriven_once_each(self, clients: dict[str, Operator], wait_until: Wait) -> None:
        number = 300
        for n in range(number):
            clients["chicago"].publish("work/jobs", str(n))
        here = clients["la"]
        wait_until(lambda: sum(1 for _ in here.letters("work", function="switch")) == number, "the dead letters", 60)
        ids = {letter["id"] for letter in here.letters("work", function="switch")}
        wait_until(lambda: {json.loads(data)["id"] for _, data in outputs(here, "_dead/switch")} == ids, "each is told")
        here.put("work/switch", "on")
        with pytest.raises(AtAnotherPop) as caught:
            clients["chicago"].redrive_some("work", "", function="switch")
        assert "la" in caught.value.message
        assert json_of("dlq", "redrive", "--function", "work/switch") == {"redriven": number, "failed": []}
        wait_until(lambda: len(outputs(here, "done")) >= number, "the results", 60)
        assert sorted(int(data) for _, data in outputs(here, "done")) == list(range(number))
        assert list(here.letters("work", function="switch")) == []
        assert json_of("dlq", "redrive", "--function", "work/switch") == {"redriven": 0, "failed": []}

    def test_one_of_a_join_arrives_again(self, clients: dict[str, Operator], wait_until: Wait) -> None:
        clients["la"].publish("work/left", "a", subject=None)
        (letter,) = wait_until(lambda: list(clients["la"].letters("work", function="pair")), "the dead letter")
        assert letter["reason"] == "no-join-key"
        result = run("dlq", "redrive", letter["id"][:12])
        assert "1 redriven" in result.stdout
        (again,) = wait_until(lambda: list(clients["la"].letters("work", function="pair")), "it is given up again")
        assert again["reason"] == "no-join-key"
        assert run("dlq", "purge", again["id"]).stdout.startswith("1 removed")

    def test_purge(self, clients: dict[str, Operator], wait_until: Wait) -> None:
        for _ in range(5):
            clients["chicago"].publish("work/words", "boom")
        wait_until(lambda: sum(1 for _ in clients["chicago"].letters("work", function="echo")) == 5, "the dead letters")
        assert "5 of work at chicago" in run("dlq", "purge", "--function", "work/echo", status=1).stderr
        assert json_of("dlq", "purge", "--function", "work/echo", "--yes") == {"purged": 5}
        assert json_of("dlq", "list", "--function", "work/echo") == []


class TestJoins:
    def test_what_is_missing(self, clients: dict[str, Operator], wait_until: Wait) -> None:
        clients["chicago"].publish("work/left", "a", subject="k1")
        (join,) = wait_until(lambda: clients["la"].joins("work"), "the join")
        assert (join["key"], join["have"], join["missing"], join["window"]) == ("k1", ["left"], ["right"], None)
        assert 50_000 < join["due_ms"] - join["since_ms"] <= 60_000
        text = run("get", "joins").stdout
        assert "right" in text and "la" in text
        clients["chicago"].publish("work/right", "b", subject="k1")
        wait_until(lambda: not clients["la"].joins("work"), "it is complete")
        with pytest.raises(EdgeflowError) as caught:
            clients["chicago"]._call("GET", "/v1/joins", params={"namespace": "work", "function": "pair"})
        assert caught.value.code == "at-another-pop"


class TestTooMuch:
    def test_a_full_queue(self, cluster: LocalCluster, clients: dict[str, Operator], wait_until: Wait) -> None:
        access = cluster.pop("chicago")
        headers = {"Authorization": f"Bearer {access.token}"}
        url = f"{access.api_url}/v1/channels/work/trickle"
        with httpx.Client(headers=headers, trust_env=False) as http:
            answers = [http.post(url, content=str(n).encode()) for n in range(30)]
        refused = [answer for answer in answers if answer.status_code == 429]
        taken = [answer for answer in answers if answer.status_code == 201]
        assert len(taken) + len(refused) == 30
        assert 5 <= len(taken) < 30
        assert refused[0].json()["code"] == "queue-full"
        assert int(refused[0].headers["retry-after"]) >= 1
        wait_until(lambda: not clients["chicago"].function("work", "narrow")["inbox"]["ready"], "room again", 30)
        assert clients["chicago"].publish("work/trickle", "x").class_ == "durable"

    def test_a_quota_holds_everywhere_and_for_its_namespace_only(
        self, clients: dict[str, Operator], wait_until: Wait
    ) -> None:
        def refused(pop: str, namespace: str = "bounded", number: int = 40) -> int:
            times = 0
            for _ in range(number):
                try:
                    clients[pop].publish(f"{namespace}/a", b"x")
                except QuotaExceeded:
                    times += 1
            return times

        assert refused("chicago") == 0
        run("quota", "set", "bounded", "--events-per-s", "5", "--burst-s", "1")
        assert refused("chicago") >= 25
        wait_until(lambda: refused("la", number=10) > 0, "the quota at la", 20)
        assert refused("chicago", "free") == 0
        assert json_of("quota", "show", "bounded")[0]["events_per_s"] == 5
        metrics = clients["chicago"]._call("GET", "/metrics").text
        assert 'edgeflow_quota_events_per_second{namespace="bounded"} 5.0' in metrics
        assert 'edgeflow_events_total{namespace="bounded",reason="quota",what="events_refused"}' in metrics
        run("quota", "clear", "bounded", "--pop", "la")
        wait_until(lambda: refused("chicago", number=10) == 0, "no quota at chicago", 20)


class TestReplays:
    def test_for_real_and_as_a_shadow(
        self, cluster: LocalCluster, clients: dict[str, Operator], folder: Path, wait_until: Wait
    ) -> None:
        number = 100
        for n in range(number):
            clients["chicago"].publish("work/numbers", n)
        here = clients["la"]
        wait_until(lambda: len(outputs(here, "scaled")) == number, "the results", 60)
        old = here.function("work", "scale")["revision"]

        same = json_of("replay", "work/numbers", "--into", "scale", "--shadow", "--follow")
        assert (same["state"], same["committed"], same["same"], same["different"]) == ("done", number, number, [])
        assert len(outputs(here, "scaled")) == number

        apply_file(write_app(folder, 3), Target(cluster.pop("la").api_url, cluster.pop("la").token), timeout_s=120)
        assert here.function("work", "scale")["revision"] != old
        changed = json_of("replay", "work/numbers", "--into", "scale", "--shadow", "--follow")
        assert (changed["same"], len(changed["different"])) == (number // 2, number // 2)
        shown = run("get", "replay", changed["id"], "--diff").stdout
        assert changed["different"][0] in shown

        assert json_of("replay", "work/#", "--into", "work/scale", "--from", "1h", "--follow")["committed"] == number
        values = sorted(json.loads(data) for _, data in outputs(here, "scaled"))
        assert values == sorted(
            [n * 2 if n % 2 else n for n in range(number)] + [n * 3 if n % 2 else n for n in range(number)]
        )
        assert {item["id"] for item in json_of("get", "replays")} >= {same["id"], changed["id"]}

    def test_an_older_revision(self, clients: dict[str, Operator]) -> None:
        current = clients["la"].function("work", "scale")["revision"]
        with pytest.raises(EdgeflowError) as caught:
            clients["la"].start_replay("work", {"channel": "numbers", "function": "scale@nope"})
        assert caught.value.status == 404
        info = json_of("replay", "work/numbers", "--into", f"scale@{current}", "--to", "30m", "--follow")
        assert (info["read"], info["state"]) == (0, "done")

    def test_a_revision_that_was_replaced(
        self, cluster: LocalCluster, clients: dict[str, Operator], folder: Path, wait_until: Wait
    ) -> None:
        here, access = clients["la"], cluster.pop("la")

        def apply(factor: int) -> str:
            apply_file(write_app(folder, factor), Target(access.api_url, access.token), timeout_s=120)
            return str(here.function("work", "price")["revision"])

        def priced() -> list[int]:
            return [json.loads(data) for _, data in outputs(here, "priced")]

        def wait_for_only(revision: str) -> None:
            wait_until(
                lambda: {one["revision"] for one in here.function("work", "price")["instances"]} == {revision},
                f"instances of {revision} alone", 60,
            )  # fmt: skip

        number = 20
        first = apply(5)
        for n in range(1, number + 1):
            here.publish("work/orders", n)
        by_first = [n * 5 for n in range(1, number + 1)]
        wait_until(lambda: priced() == by_first, "the results of the first revision", 60)
        second = apply(7)
        assert second != first
        wait_for_only(second)

        done = json_of("replay", "work/orders", "--into", f"price@{first}", "--follow")
        assert (done["state"], done["revision"], done["committed"], done["dead"]) == ("done", first, number, 0)
        assert priced() == by_first * 2
        shadow = json_of("replay", "work/orders", "--into", f"price@{first}", "--shadow", "--follow")
        assert (shadow["committed"], shadow["same"], shadow["different"]) == (number, number, [])
        current = json_of("replay", "work/orders", "--into", f"price@{second}", "--shadow", "--follow")
        assert (current["committed"], current["same"], len(current["different"])) == (number, 0, number)
        (diff, *_) = here._call("GET", f"/v1/replays/work/{current['id']}/diff").json()["items"]
        (recorded,), (made,) = diff["recorded"], diff["shadow"]
        assert recorded["data"] * 7 == made["data"] * 5
        assert priced() == by_first * 2

        # What ran for the replay alone leaves again, and new events are the current revision's.
        wait_for_only(second)
        here.publish("work/orders", 100)
        wait_until(lambda: priced()[len(by_first) * 2 :] == [700], "the result of the current revision", 30)

    def test_cancel(self, clients: dict[str, Operator], wait_until: Wait) -> None:
        info = clients["la"].start_replay("work", {"channel": "numbers", "function": "scale", "shadow": True})
        assert "cancelled" in run("replay", "--cancel", info["id"]).stdout or clients["la"].replay("work", info["id"])
        with pytest.raises(AtAnotherPop):
            clients["chicago"].start_replay("work", {"channel": "numbers", "function": "scale"})
        assert clients["chicago"].replay("work", info["id"]) is None


def test_counters_are_read_like_values(clients: dict[str, Operator], cluster: LocalCluster, wait_until: Wait) -> None:
    before = clients["la"].get("work/calls")
    start = before.json() if before is not None else 0
    for _ in range(3):
        assert call(cluster, "chicago", "distant", b"x").status_code == 200
    for pop in ("la", "chicago"):
        wait_until(lambda pop=pop: clients[pop].get("work/calls").json() == start + 3, f"the counter at {pop}")


def test_reserved_names(clients: dict[str, Operator]) -> None:
    for key in ("work/_state/x", "work/_consumers/x"):
        with pytest.raises(EdgeflowError) as caught:
            clients["la"].put(key, b"x")
        assert caught.value.code == "reserved"
    with pytest.raises(EdgeflowError):
        clients["la"].publish("work/_invoke/echo", b"x")
