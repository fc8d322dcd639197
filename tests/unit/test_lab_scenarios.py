"""Scenarios as they are written, what their seed decides, and the verdict on what was seen."""

from pathlib import Path

import pytest

from edgeflow.lab import judge as judging
from edgeflow.lab.errors import BadScenario
from edgeflow.lab.judge import Seen, judge
from edgeflow.lab.ledger import Ledger, Released, dump, load
from edgeflow.lab.report import BEGIN, END, Report, write_table
from edgeflow.lab.scenario import find, names, parse

POPS = ("la", "ny", "sf")


def test_those_that_come_along_are_valid_and_say_what_they_are() -> None:
    assert {"pop-killed", "pop-lost", "partition", "control-loss"} <= set(names())
    for name in names():
        scenario = find(name)
        assert scenario.document.what.endswith(".") and scenario.name == name
        assert len(scenario.steps(1)) == len(scenario.document.steps)


def test_controls_are_named_so() -> None:
    assert [name for name in names() if find(name).document.sabotage] == [
        name for name in names() if name.startswith("control-")
    ]


def test_a_seed_decides_roles_and_moments_and_decides_them_again() -> None:
    scenario = find("pop-lost")
    casts = {seed: scenario.cast(POPS, seed) for seed in range(20)}
    assert casts == {seed: scenario.cast(tuple(reversed(POPS)), seed) for seed in range(20)}
    assert {cast["a"] for cast in casts.values()} == set(POPS)
    moments = {seed: [step.after_events for step in scenario.steps(seed)] for seed in range(20)}
    assert moments == {seed: [step.after_events for step in scenario.steps(seed)] for seed in range(20)}
    assert len({tuple(one) for one in moments.values()}) > 5


def test_too_few_pops_are_refused() -> None:
    with pytest.raises(BadScenario, match="needs 3 PoPs, this cluster has 2"):
        find("rolling-restart").cast(("la", "ny"), 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("what: x\nsteps: [{kill: a, pause: b}]", "kill and pause"),
        ("what: x\nsteps: [{after_s: 3}]", "does none"),
        ("what: x\nsteps: [{explode: a}]", "explode"),
        ("what: x\nsteps: [{kill: a/disk}]", "kill"),
        ("what: x\nsteps: [{kill: c}]", "pops: 2 has no c"),
        ("what: x\nsteps: [{partition: 'a,d'}]", "partition"),
        ("what: x\nsteps: [{kill: a, one_way: true}]", "one_way"),
        ("what: x\nsteps: [{wan: {delay: 20}}]", "delay"),
        ("what: x\nsteps: [{wan: {delay: 20m}}]", "not a delay"),
        ("what: x\nload: {ack: twice}", "ack"),
        ("what: x\nload: {at: [c]}", "has no c"),
        ("steps: []", "what"),
        ("what: [", "not YAML"),
        ("- 1", "valid dictionary"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(BadScenario, match=words):
        parse("mine", text)


def test_a_file_of_ones_own_and_a_name_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("what: Mine.\nsteps: [{after_events: 5, kill: a/data}]")
    assert find(str(file)).name == "mine"
    for name in ("nothing", str(tmp_path / "other.yaml")):
        with pytest.raises(BadScenario):
            find(name)


class Watched:
    """What a client saw."""

    def __init__(self, subjects: list[str]) -> None:
        self.subjects = subjects
        self.ids = [f"e{number}" for number in range(len(subjects))]
        self.gaps: list[str] = []
        self.unreadable: list[str] = []
        self.failure: str | None = None


def seen(results: list[str], **over: object) -> Seen:
    """A PoP that shows these results, once each, everywhere."""
    released = [Released(("x", 1, n + 1, 0), "ns/done", n, "log", f"e{n}", one) for n, one in enumerate(results)]
    ledger = Ledger("x", {}, {}, {}, released)
    fields = {
        "ledger": ledger,
        "effects": results,
        "tally": len(set(results)),
        "content_hash": "h",
        "watcher": Watched(results),
    }
    return Seen(**{**fields, **over})  # type: ignore[arg-type]


def verdict_on(acked: set[str], begun: set[str] | None = None, **pops: Seen) -> judging.Verdict:
    ignored = ("events", "invocations", "released events")  # the ledger's own equations are for real stores
    found = judge(pops, "ns", acked=acked, begun=begun or acked, subscriptions={})
    kept = [text for text in found.problems[judging.CONSERVATION] if not any(word in text for word in ignored)]
    found.problems[judging.CONSERVATION] = kept
    return found


def test_what_holds_is_called_so() -> None:
    both = {"la": seen(["s0", "s1"]), "ny": seen(["s0", "s1"])}
    assert verdict_on({"s0", "s1"}, **both).ok
    assert verdict_on({"s0"}, {"s0", "s1", "s2"}, **both).ok, "what was not acknowledged may have a result, or none"


def test_lost_doubled_and_strange_results_are_found_wherever_they_show() -> None:
    good = seen(["s0", "s1"])
    lost = verdict_on({"s0", "s1"}, la=good, ny=seen(["s0"]))
    assert lost.lost == {"s1"} and lost.problems[judging.ONE_RESULT]
    doubled = verdict_on({"s0"}, la=seen(["s0", "s0"]))
    assert doubled.doubled == {"s0"} and not doubled.lost
    unacked = verdict_on(set(), {"s0"}, la=seen(["s0", "s0"]))
    assert unacked.doubled == {"s0"}, "two results are too many for anything"
    assert not verdict_on({"s0"}, la=seen(["s0", "s9"])).ok
    assert verdict_on({"s0", "s1"}, la=seen(["s0", "s1"], effects=["s0"])).lost == {"s1"}
    assert verdict_on({"s0", "s1"}, la=seen(["s0", "s1"], effects=["s0", "s1", "s1"])).doubled == {"s1"}
    assert not verdict_on({"s0", "s1"}, la=seen(["s0", "s1"], tally=3)).ok
    assert verdict_on({"s0"}, la=seen(["s0"], watcher=Watched([]))).lost == {"s0"}


def test_early_news_gaps_and_differences_are_found_under_their_names() -> None:
    early, told = Watched(["s0"]), Watched(["s0"])
    early.unreadable.append("s0")
    told.gaps.append("a gap")
    found = verdict_on({"s0"}, la=seen(["s0"], watcher=early), ny=seen(["s0"], watcher=told, content_hash="other"))
    assert {name for name, texts in found.problems.items() if texts} == {
        judging.DATA_FIRST, judging.NO_GAP, judging.CONVERGENCE,
    }  # fmt: skip
    other = Ledger("x", {}, {("la", 1): 0}, {("la", 1): {}}, seen(["s0"]).ledger.released)
    assert verdict_on({"s0"}, la=seen(["s0"]), ny=seen(["s0"], ledger=other)).problems[judging.CONVERGENCE]


def test_a_ledger_is_the_same_after_a_journey_as_json() -> None:
    ledger = Ledger(
        "la", {"arrivals": 3}, {("la", 1): 2}, {("la", 1): {1: b"\x00x", 2: b""}}, seen(["s0"]).ledger.released, ["'gap'"], {"held": 1}
    )  # fmt: skip
    ledger.gaps = []
    assert load(dump(ledger)) == ledger


def report(**fields: object) -> Report:
    return Report("pop-lost", "x", 7, "short", {"a": "la"}, ["la"], **fields)  # type: ignore[arg-type]


def test_a_control_holds_when_its_sabotage_is_found_and_nothing_else_is_wrong() -> None:
    wrong = {judging.ONE_RESULT: ["3 lost"]}
    assert report(problems={judging.ONE_RESULT: []}).ok
    assert not report(problems=wrong, lost=3).ok
    assert report(problems=wrong, lost=3, sabotage="lose").ok
    assert not report(problems={}, sabotage="lose").ok, "a control in which nothing is found is broken"
    assert not report(problems=wrong, lost=3, sabotage="double").ok
    assert not report(problems={**wrong, judging.CONVERGENCE: ["x"]}, lost=3, sabotage="lose").ok


def test_the_table_is_written_between_its_markers_and_can_be_written_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_table(page, [report(acked=5, stood_s=1.25, waited_for_return=True)], "One of one held.")
    text = page.read_text()
    assert (
        text.startswith(f"before\n{BEGIN}\nOne of one held.\n")
        and text.endswith(f"{END}\nafter\n")
        and "old" not in text
    )
    assert "| pop-lost | 5 | 0 | 0 | 0 | 1.2 s (with its return) | - | - | 0.0 MB |" in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        write_table(page, [], "")
