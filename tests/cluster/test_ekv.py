"""The key-value store on three real PoPs: sessions, staleness, copies, homes and their hand-over, watches, types; with links that are cut."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.core.tokens import MAX_TOKEN_BYTES, parse_session
from edgeflow.errors import (
    BadPolicy,
    BadSession,
    Behind,
    EdgeflowError,
    HomeUnreachable,
    NoHome,
    NotReplicated,
    Stale,
    VersionMismatch,
    WrongType,
)
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import ReceivedEvent
from edgeflow.sdk.values import Change, Listed, Listing, Value

POPS = ("chicago", "la", "ny")
PAIRS = (("chicago", "la"), ("chicago", "ny"), ("la", "ny"))
Wait = Callable[..., Any]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(POPS) as cluster:
        yield cluster


@pytest.fixture
def at(cluster: LocalCluster) -> Iterator[Callable[[str], Operator]]:
    with ExitStack() as stack:
        known: dict[str, Operator] = {}

        def client(pop: str) -> Operator:
            if pop not in known:
                access = cluster.pop(pop)
                known[pop] = stack.enter_context(Operator(access.api_url, access.token, retry_s=10))
            return known[pop]

        yield client


@contextmanager
def cut_off(cluster: LocalCluster, pop: str) -> Iterator[None]:
    """No link to `pop`."""
    pairs = [pair for pair in PAIRS if pop in pair]
    for pair in pairs:
        cluster.set_link(*pair, cut=True)
    try:
        yield
    finally:
        for pair in pairs:
            cluster.set_link(*pair, cut=False)


def found(value: Value | None) -> bytes:
    assert value is not None
    return value.data


def hears_nothing(client: Operator, namespace: str) -> bool:
    """Whether a PoP has not heard of some other one for a while; by then nothing is on its way either."""
    staleness_ms = client.ekv.standing(namespace)["staleness_ms"]
    return staleness_ms is None or staleness_ms > 600


def all_linked(at: Callable[[str], Operator], wait_until: Wait) -> None:
    def linked() -> bool:
        return all(one["state"] == "up" for pop in POPS for one in at(pop).pops() if not one["self"])

    wait_until(linked, "all links", 30)


def settled(at: Callable[[str], Operator], namespace: str, wait_until: Wait) -> None:
    """All PoPs have everything, and the same."""

    def has_all() -> bool:
        # A write that nobody could be told about may still come from a link that was cut: all is compared again then.
        stands = [at(pop).ekv.standing(namespace, hash=True) for pop in POPS]
        same_logs = all(stand["heads"] == stand["applied"] == stands[0]["heads"] for stand in stands)
        return same_logs and len({stand["hash"] for stand in stands}) == 1

    wait_until(has_all, "all PoPs to have the same", 30)


def test_a_session_sees_its_writes_at_every_pop_and_never_goes_back(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    at("chicago").ekv.put("sess/other", "x")
    wait_until(lambda: at("la").ekv.get("sess/other") is not None, "the namespace at la")
    session = at("chicago").ekv.session()
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("la"), "sess"), "la to be cut off")
        session.put("sess/k", "mine")
        assert found(session.get("sess/k")) == b"mine"
        elsewhere = at("la").ekv.session(session.tokens)
        assert at("la").ekv.get("sess/k") is None  # without the session la has nothing to wait for
        began_s = time.monotonic()
        for read in (
            lambda: elsewhere.get("sess/k", wait_s=0.4),
            lambda: elsewhere.head("sess/k", wait_s=0.4),
            lambda: list(elsewhere.list("sess/", wait_s=0.4)),
        ):
            with pytest.raises(Behind):
                read()
        assert 1.2 <= time.monotonic() - began_s < 5
        # A PoP that is connected answers the same session.
        assert found(at("ny").ekv.session(session.tokens).get("sess/k")) == b"mine"
    assert found(elsewhere.get("sess/k", wait_s=20)) == b"mine"
    # What was seen at la holds at chicago, and deletions are seen too.
    assert elsewhere.delete("sess/k")
    assert at("chicago").ekv.session(elsewhere.tokens).get("sess/k") is None
    tokens = elsewhere.tokens["sess"]
    assert len(tokens) <= MAX_TOKEN_BYTES

    def forgotten() -> bool:
        elsewhere.get("sess/other")
        return not parse_session(elsewhere.tokens["sess"], "sess").seen

    wait_until(forgotten, "the token to leave out what all have")
    with pytest.raises(BadSession):
        at("la").ekv.session({"other": "sess:AQ"}).get("other/k")


def test_a_read_that_may_be_too_old_is_refused(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    at("chicago").ekv.put("fresh/k", "1")
    wait_until(lambda: at("la").ekv.get("fresh/k") is not None, "the value at la")
    value = at("la").ekv.get("fresh/k", max_staleness_s=1)
    assert found(value) == b"1"
    # Written after that, and asked at once: complete as of now is what was asked.
    at("ny").ekv.put("fresh/k", "2")
    assert found(at("la").ekv.get("fresh/k", max_staleness_s=5)) in (b"1", b"2")
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("la"), "fresh"), "la to be cut off")
        at("chicago").ekv.put("fresh/k", "3")

        def refused() -> bool:
            try:
                at("la").ekv.get("fresh/k", max_staleness_s=0.3, wait_s=0.2)
            except Stale:
                return True
            return False

        wait_until(refused, "la to be stale")
        copy = at("la").ekv.get("fresh/k")
        assert copy is not None and copy.data != b"3"
        wait_until(lambda: (at("la").ekv.get("fresh/k") or Value("", "", 0, None)).age_s, "the copy to have an age", 30)
        assert found(at("la").ekv.get("fresh/k", max_staleness_s=600)) == copy.data
    wait_until(lambda: not refused(), "la to be fresh again")
    assert found(at("la").ekv.get("fresh/k", max_staleness_s=0.3)) == b"3"


def test_copies_are_confirmed_or_the_receipt_says_that_they_are_not(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    big = bytes(range(256)) * 8192
    receipt = at("chicago").ekv.put("copies/big", big, durability="replicated:2", wait_s=30)
    assert receipt.class_ == "replicated:2"
    for pop in ("la", "ny"):
        assert found(at(pop).ekv.get("copies/big")) == big  # at once: that is what it says
        assert at("chicago").ekv.has("copies", receipt, pop=pop)
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("la"), "copies"), "la to be cut off")
        assert at("chicago").ekv.put("copies/one", "1", durability="replicated:1").class_ == "replicated:1"
        with pytest.raises(NotReplicated) as late:
            at("chicago").ekv.put("copies/two", "2", durability="replicated:2", wait_s=0.5)
        told: Any = late.value.details["receipt"]
        assert told["class"] == "durable"
        assert late.value.details["confirmed"] == 1
        assert found(at("chicago").ekv.get("copies/two")) == b"2"
        with pytest.raises(NotReplicated):
            at("la").ekv.counter("copies/n").add(2, durability="replicated:1", wait_s=0.3)
        assert at("la").ekv.counter("copies/n").value() == 2
    wait_until(
        lambda: at("ny")._call("GET", f"/v1/receipts/copies/{told['origin']}/{told['epoch']}/{told['seq']}", params={"pop": "la"}).json()["applied"],
        "la to have it",
    )  # fmt: skip
    wait_until(lambda: at("chicago").ekv.counter("copies/n").value() == 2, "the counter at chicago")
    with pytest.raises(EdgeflowError, match="more than the 2 other PoPs") as refused:
        at("chicago").ekv.put("copies/k", "x", durability="replicated:3")
    assert refused.value.code == "bad-parameter"
    settled(at, "copies", wait_until)


def test_what_is_strong_is_decided_at_the_home_from_every_pop(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    for attempt in (
        lambda: at("chicago").ekv.put("strong/free", "1", strong=True),
        lambda: at("chicago").ekv.get("strong/free", strong=True),
    ):
        at("chicago").ekv.put("strong/free", "0")
        with pytest.raises(NoHome):
            attempt()
    at("chicago").set_policies("strong", [{"prefix": "acct/", "home": "la"}], None)
    for pop in POPS:
        wait_until(lambda pop=pop: _home(at(pop), "strong", "acct/x") == "la", "the policy")
    receipt = at("chicago").ekv.put("strong/acct/x", "0", strong=True)
    assert receipt.origin == "la"
    assert found(at("ny").ekv.get("strong/acct/x", strong=True)) == b"0"
    # Not asked for, and all the same decided there; with copies, of which the PoP that was asked is one.
    plain = at("ny").ekv.put("strong/acct/plain", "p", durability="replicated:2")
    assert (plain.origin, plain.class_) == ("la", "replicated:2")
    big = b"x" * 1_500_000
    assert at("ny").ekv.put("strong/acct/big", big, strong=True, wait_s=20).origin == "la"
    assert found(at("chicago").ekv.get("strong/acct/big", strong=True, wait_s=20)) == big
    assert at("ny").ekv.counter("strong/acct/n").add(5, strong=True).origin == "la"
    assert at("chicago").ekv.counter("strong/acct/n").value(strong=True) == 5
    with pytest.raises(WrongType):
        at("chicago").ekv.set("strong/acct/n").add("x")
    done = add_up(at, "strong/acct/x", each=15)
    assert found(at("chicago").ekv.get("strong/acct/x", strong=True)) == str(done).encode()
    assert done == 45
    mixed = at("ny").ekv.batch("strong", strong=True).put("acct/y", "1").put("elsewhere", "1")
    with pytest.raises(NoHome, match="'elsewhere'"):
        mixed.commit()
    with pytest.raises(BadPolicy):
        at("chicago").set_policies("strong", [{"prefix": "acct/", "home": "ny"}], None)
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("chicago"), "strong"), "chicago to know that la is away")
        for attempt in (
            lambda: at("chicago").ekv.put("strong/acct/x", "no", strong=True, wait_s=1),
            lambda: at("chicago").ekv.put("strong/acct/x", "no", wait_s=1),
            lambda: at("chicago").ekv.get("strong/acct/x", strong=True, wait_s=1),
        ):
            with pytest.raises(HomeUnreachable):
                attempt()
        assert found(at("chicago").ekv.get("strong/acct/x")) == b"45"
        assert found(at("la").ekv.get("strong/acct/x", strong=True)) == b"45"
    settled(at, "strong", wait_until)


def add_up(at: Callable[[str], Operator], key: str, each: int, stop: threading.Event | None = None) -> int:
    """Each PoP's client adds 1 to a number by compare-and-set, `each` times or until `stop`; how often that was acknowledged."""
    done: list[int] = []
    trouble: list[BaseException] = []

    def run(pop: str) -> None:
        count = 0
        try:
            while count < each and not (stop is not None and stop.is_set()):
                try:
                    value = at(pop).ekv.get(key, strong=True, wait_s=10)
                    assert value is not None
                    at(pop).ekv.put(key, str(int(value.data) + 1), if_version=value.version, strong=True, wait_s=10)
                    count += 1
                except VersionMismatch:
                    continue
        except BaseException as error:
            trouble.append(error)
        done.append(count)

    for pop in POPS:
        at(pop)
    threads = [threading.Thread(target=run, args=(pop,)) for pop in POPS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not trouble, trouble
    return sum(done)


def test_a_home_is_handed_over_in_the_middle_of_writes_and_nothing_is_lost(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    at("la").set_policies("move", [{"prefix": "acct/", "home": "la"}], None)
    for pop in POPS:
        wait_until(lambda pop=pop: _home(at(pop), "move", "acct/x") == "la", "the policy")
    at("la").ekv.put("move/acct/x", "0", strong=True, durability="replicated:2")
    stop = threading.Event()
    total: list[int] = []
    adding = threading.Thread(target=lambda: total.append(add_up(at, "move/acct/x", 10_000, stop)))
    adding.start()
    for to in ("ny", "chicago", "la"):
        began = int(found(at("ny").ekv.get("move/acct/x")))
        moved = at("chicago").move_home("move", "acct/", to, force=False, wait_s=20)
        assert (moved["home"], moved["forced"], moved["lost"]) == (to, False, None)
        wait_until(lambda began=began: int(found(at("ny").ekv.get("move/acct/x"))) > began + 5, "writes to go on")
        assert at("ny").ekv.put("move/acct/who", "?").origin == to
    stop.set()
    adding.join(60)
    assert total
    assert found(at("chicago").ekv.get("move/acct/x", strong=True)) == str(total[0]).encode()
    assert moved["term"] == 4
    settled(at, "move", wait_until)


def _home(client: Operator, namespace: str, key: str) -> Any:
    try:
        return client.policies(namespace, key=key)["rules"][0]["home"]
    except EdgeflowError:
        return None


def test_a_home_that_is_away_is_moved_by_force_only(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    at("la").set_policies("force", [{"prefix": "", "home": "la"}], None)
    for pop in POPS:
        wait_until(lambda pop=pop: _home(at(pop), "force", "x") == "la", "the policy")
    at("la").ekv.put("force/x", "1", durability="replicated:2")
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("chicago"), "force"), "la to be away")
        with pytest.raises(HomeUnreachable, match="did not come to its end"):
            at("chicago").move_home("force", "", "ny", force=False, wait_s=1)
        moved = at("chicago").move_home("force", "", "ny", force=True, wait_s=1)
        assert moved["forced"]
        assert "la has acknowledged" in moved["lost"]
        assert at("chicago").ekv.put("force/x", "2", strong=True).origin == "ny"
    # la hears of it, and sends what it gets to ny.
    wait_until(lambda: _home(at("la"), "force", "x") == "ny", "la to hear of it")
    wait_until(lambda: at("la").ekv.put("force/y", "3").origin == "ny", "la to hold to it")
    assert found(at("la").ekv.get("force/x", strong=True)) == b"2"


def test_a_watch_tells_what_is_there_and_each_later_state(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    for number in range(3):
        at("chicago").ekv.put(f"watch/a/{number}", str(number))
    at("chicago").ekv.put("watch/b", "x")
    wait_until(lambda: at("la").ekv.get("watch/b") is not None, "the values at la")
    told: list[Any] = []
    ended = threading.Event()

    def follow() -> None:
        try:
            for one in at("la").ekv.watch("watch/a/", reconnect_s=20):
                told.append(one)
                if isinstance(one, Change) and one.key == "watch/a/end":
                    return
        finally:
            ended.set()

    threading.Thread(target=follow, daemon=True).start()
    wait_until(lambda: any(isinstance(one, Listed) for one in told), "the listing")
    assert [one.key for one in told[:-1]] == [f"watch/a/{number}" for number in range(3)]
    at("chicago").ekv.put("watch/a/1", "new")
    at("ny").ekv.delete("watch/a/2")
    at("chicago").ekv.put("watch/b", "not below the prefix")
    at("la").ekv.counter("watch/a/n").add(2)
    wait_until(lambda: {one.key for one in told[4:]} >= {"watch/a/1", "watch/a/2", "watch/a/n"}, "the changes")
    # The control process goes and comes back: the watch goes on behind what it was told, without a new listing.
    old = cluster.kill("la", "control")
    cluster.wait_restarted("la", "control", old)
    for number in range(20):
        at("chicago").ekv.put("watch/a/0", str(number))
    at("chicago").ekv.put("watch/a/end", "")
    wait_until(ended.is_set, "the end", 40)
    changes = [one for one in told if isinstance(one, Change)]
    last = {one.key: one.info for one in changes}
    assert last["watch/a/2"] is None
    assert last["watch/a/1"] is not None
    kind = last["watch/a/n"]
    assert kind is not None and kind.kind == "counter"
    assert not any(isinstance(one, Listing) for one in told)
    versions = [one.info.version for one in changes if one.key == "watch/a/0" and one.info is not None]
    assert versions == sorted(versions)
    assert found(at("la").ekv.get("watch/a/0")) == b"19"
    assert versions[-1] == at("chicago").ekv.head("watch/a/0").version  # type: ignore[union-attr]


def test_a_watch_that_comes_to_another_pop_gets_everything_anew(
    at: Callable[[str], Operator], wait_until: Wait
) -> None:
    at("chicago").ekv.put("again/k", "1")
    wait_until(lambda: at("la").ekv.get("again/k") is not None, "the value at la")
    with at("la")._stream("/v1/ekv/again", {"watch": "1"}, {"last-event-id": "chicago:1:1"}, 10) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if "listed" in text:
                break
    assert text.index("listing") < text.index('"key":"k"') < text.index("listed")
    assert "another-pop" in text


def test_types_batches_and_deadlines_at_several_pops(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    at("chicago").ekv.put("types/start", "x", durability="replicated:2")
    with cut_off(cluster, "la"):
        wait_until(lambda: hears_nothing(at("la"), "types"), "la to be cut off")
        for pop in POPS:
            ekv = at(pop).ekv
            ekv.put("types/value", pop)
            ekv.set("types/set").add(pop, "all")
            ekv.map("types/map").put({pop: pop, "all": pop})
            for _ in range(2):
                ekv.counter("types/count").add(10, id=f"one-{pop}")
    all_linked(at, wait_until)
    settled(at, "types", wait_until)
    for pop in POPS:
        ekv = at(pop).ekv
        assert ekv.counter("types/count").value() == 30
        assert ekv.set("types/set").members() == {*POPS, "all"}
        assert set(ekv.map("types/map").fields()) == {*POPS, "all"}
        kept = ekv.versions("types/value")
        assert [version.current for version in kept].count(True) == 1
        lost = [found(ekv.get("types/value", version=version.version)) for version in kept if not version.current]
        assert b"la" in [*lost, found(ekv.get("types/value"))]
    with at("ny").ekv.batch("types", durability="replicated:2") as batch:
        batch.put("b1", {"n": 1}).put("b2", b"\x00\xff", content_type="image/png", ttl_s=600).delete("start")
        batch.increment("count", -5).remove("set", "la").unset("map", "all")
    assert batch.receipt is not None
    for pop in POPS:
        ekv = at(pop).ekv
        assert (ekv.get("types/b1") or Value("", "", 0, None)).json() == {"n": 1}
        assert ekv.get("types/start") is None
        assert ekv.counter("types/count").value() == 25
        assert "la" not in ekv.set("types/set").members()
        assert "all" not in ekv.map("types/map").fields()
    with pytest.raises(VersionMismatch), at("ny").ekv.batch("types") as batch:
        batch.put("b1", "2").put("b2", "x", if_version="nothing").increment("count")
    assert at("ny").ekv.counter("types/count").value() == 25
    at("chicago").ekv.put("types/short", "x", ttl_s=0.5, durability="replicated:2")
    for pop in POPS:
        wait_until(lambda pop=pop: at(pop).ekv.get("types/short") is None, "the deadline")
    settled(at, "types", wait_until)


def test_the_example_of_the_page_runs_as_it_stands(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    page = (Path(__file__).parents[2] / "docs" / "ekv.md").read_text()
    source = page.split("```python\n", 1)[1].split("```", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, "EDGEFLOW_HOME": str(cluster.home.root)}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chicago = at("chicago").ekv
    assert found(chicago.get("vision/models/person")) == b"..."
    assert (chicago.counter("vision/seen").value(), chicago.counter("vision/n").value()) == (3, 1)
    assert chicago.set("vision/cameras").members() == {"north", "south"}
    assert chicago.map("vision/config").fields() == {"threshold": b"0.7"}
    assert (found(chicago.get("vision/a")), found(chicago.get("vision/b"))) == (b"mine", b"2")
    settled(at, "vision", wait_until)


READER = """
from edgeflow import function

@function
def handle(ctx, asked):
    value = ctx.ekv.get(asked.text())
    ctx.ekv.set_add("asked", asked.text())
    ctx.ekv.map_put("last", {asked.text(): ctx.invocation_id})
    ctx.emit("told", "nothing" if value is None else value.text())
"""


def test_a_function_reads_what_the_session_of_its_input_has_seen(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait, tmp_path: Path
) -> None:
    all_linked(at, wait_until)
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "handler.py").write_text(READER)
    (tmp_path / "edgeflow.yaml").write_text(
        "namespace: fn\nfunctions:\n  reader: {build: ./reader, subscribe: asked, publish: told, place: {pops: [la]}}\n"
    )
    access = cluster.pop("la")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
    told: list[Any] = []
    ready = threading.Event()

    def follow() -> None:
        with at("la").subscribe("fn/told") as events:
            ready.set()
            for event in events:
                told.append(event)
                if event.data == b"end":
                    return

    following = threading.Thread(target=follow)
    following.start()
    ready.wait(10)
    at("la").ekv.put("fn/end", "end")
    wait_until(lambda: at("chicago").ekv.get("fn/end") is not None, "the namespace at chicago")
    session = at("chicago").ekv.session()
    cluster.set_link("chicago", "la", delay_ms=700)
    cluster.set_link("ny", "la", delay_ms=700)
    try:
        wait_until(lambda: hears_nothing(at("la"), "fn"), "the delay to be there")
        session.put("fn/k", "seen")
        at("la").publish("fn/asked", "k")
        at("la").publish("fn/asked", "k", session=session)
        wait_until(lambda: len([one for one in told if one.data != b"end"]) >= 2, "both answers", 20)
    finally:
        cluster.set_link("chicago", "la", delay_ms=0)
        cluster.set_link("ny", "la", delay_ms=0)
    at("la").publish("fn/asked", "end")
    following.join(20)
    assert [one.data for one in told] == [b"nothing", b"seen", b"end"]
    assert at("la").ekv.set("fn/asked").members() == {"k", "end"}
    assert set(at("la").ekv.map("fn/last").fields()) == {"k", "end"}
    # Read by a function, they are JSON.
    for key, shown in (("asked", ["end", "k"]), ("last", ["asked", "end", "k"])):
        at("la").publish("fn/asked", key)
        with at("la").subscribe("fn/told", from_=told[-1].cursor) as events:
            told.append(next(iter(events)))
        assert sorted(json.loads(told[-1].data)) == shown
    plain, with_token = told[0].attributes, told[1].attributes
    assert "ekvsession" not in plain
    # Whoever goes on with the output reads as much.
    assert found(at("ny").ekv.session({"fn": with_token["ekvsession"]}).get("fn/k")) == b"seen"


KEEPER = """
from edgeflow import function
from edgeflow.errors import EdgeflowError

@function
def handle(ctx, asked):
    what = asked.json()
    if "add" in what:
        value = ctx.ekv.get("sum")
        total = what["add"] + (0 if value is None else value.json())
        if value is None:
            ctx.ekv.put("sum", total, if_absent=True)
        else:
            ctx.ekv.put("sum", total, if_version=value.version)
        return {"attempt": ctx.attempt}
    try:
        value = ctx.ekv.get(what.pop("key"), **what)
        return {"size": None if value is None else len(value.data), "begins": None if value is None else value.text()[:4]}
    except EdgeflowError as error:
        return {"code": error.code}
"""


def test_a_function_reads_at_the_home_and_as_fresh_as_it_asks_and_writes_under_conditions(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait, tmp_path: Path
) -> None:
    all_linked(at, wait_until)
    (tmp_path / "keeper").mkdir()
    (tmp_path / "keeper" / "handler.py").write_text(KEEPER)
    (tmp_path / "edgeflow.yaml").write_text(
        "namespace: kept\nfunctions:\n  keeper: {build: ./keeper, subscribe: asked, publish: told, place: {pops: [chicago]}, "
        "scale: {instances: 3}, retry: {attempts: 20, backoff: 5ms}}\n"
    )
    access = cluster.pop("chicago")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token), timeout_s=120)
    chicago, la = at("chicago"), at("la")

    def answer(**question: Any) -> Any:
        (output,) = chicago.invoke("kept/keeper", question, timeout_s=30)
        return output.json()

    chicago.set_policies("kept", [{"prefix": "acct/", "home": "la"}], None)
    wait_until(lambda: _home(la, "kept", "acct/x") == "la", "the policy")
    chicago.ekv.put("kept/acct/x", "first")
    wait_until(lambda: chicago.ekv.get("kept/acct/x") is not None, "the copy")
    big = "y" * 1_500_000
    with slow(cluster, "chicago", 1000):
        wait_until(lambda: hears_nothing(chicago, "kept"), "the delay to be there")
        la.ekv.put("kept/acct/x", "later")
        la.ekv.put("kept/acct/big", big)
        assert answer(key="acct/x") == {"size": 5, "begins": "firs"}
        assert answer(key="acct/x", strong=True, wait_s=20) == {"size": 5, "begins": "late"}
        assert answer(key="acct/big", strong=True, wait_s=20) == {"size": len(big), "begins": "yyyy"}
        assert answer(key="acct/x", max_staleness_s=0.05, wait_s=0.2) == {"code": "stale"}
        receipt = la.ekv.put("kept/acct/x", "latest")
        assert answer(key="acct/x", version=receipt.version, wait_s=0.05) == {"code": "behind"}
        assert answer(key="acct/x", version=receipt.version, wait_s=20)["begins"] == "late"
    assert answer(key="free", strong=True) == {"code": "no-home"}
    with cut_off(cluster, "chicago"):
        wait_until(lambda: hears_nothing(chicago, "kept"), "chicago to be alone")
        assert answer(key="acct/x", strong=True, wait_s=0.5) == {"code": "home-unreachable"}
    # Increments by hand, from three instances at once: each counts once, because a commit that comes too late is tried again.
    chicago.ekv.delete("kept/sum")
    for n in range(1, 41):
        chicago.publish("kept/asked", {"add": n})
    total = str(sum(range(1, 41))).encode()
    wait_until(lambda: (value := chicago.ekv.get("kept/sum")) is not None and value.data == total, "the sum", 60)
    assert list(chicago.dead_letters("kept")) == []


@contextmanager
def slow(cluster: LocalCluster, pop: str, delay_ms: float) -> Iterator[None]:
    """All links to `pop` with a one-way delay."""
    pairs = [pair for pair in PAIRS if pop in pair]
    for pair in pairs:
        cluster.set_link(*pair, delay_ms=delay_ms)
    try:
        yield
    finally:
        for pair in pairs:
            cluster.set_link(*pair, delay_ms=0)


def test_a_stock_mqtt_client_asks_for_copies_of_its_event(
    cluster: LocalCluster, at: Callable[[str], Operator], wait_until: Wait
) -> None:
    all_linked(at, wait_until)
    access = cluster.pop("chicago")

    def publish(durability: str, *options: str) -> dict[str, Any]:
        command = [
            "mosquitto_rr", "-h", access.mqtt_host, "-p", str(access.mqtt_port), "-u", access.mqtt_username, "-P", access.mqtt_password,
            "-V", "5", "-q", "1", "-t", "mq/c", "-e", f"mq/_re/{time.monotonic_ns()}", "-m", "x", "-W", "40",
            "-D", "publish", "user-property", "durability", durability, *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    receipt = publish("replicated:2")
    assert (receipt["class"], receipt["origin"]) == ("replicated:2", "chicago")
    for pop in ("la", "ny"):
        assert at(pop)._call("GET", f"/v1/receipts/mq/chicago/{receipt['epoch']}/{receipt['seq']}").json()["applied"]
    assert publish("durable")["class"] == "durable"
    refused = publish("etched-in-stone")
    assert (refused["class"], refused["code"]) == ("refused", "bad-event")
    assert "'etched-in-stone'" in refused["detail"]
    late = publish("replicated:3")
    assert late["class"] == "not-replicated"
    assert late["receipt"]["class"] == "durable"
    told = list(at("chicago").channels("mq"))
    assert told == [{"channel": "mq/c", "events": 3}]
    with at("chicago").subscribe("mq/c", from_="start") as events:
        for event in events:
            assert isinstance(event, ReceivedEvent)
            assert "durability" not in event.attributes
            break
