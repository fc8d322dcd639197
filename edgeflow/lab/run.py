"""Runs one scenario: its functions in a namespace of their own, its load, its steps, and the verdict.

What it is: the order of things, the waits between them, and the moments that the report's seconds are counted from.
What it is not: the means of hurting (hands.py), or what is right (judge.py).
What must stay true: the cluster is left as it was found, also after a failure: links as they were, nothing down or paused, clocks right, no functions; waits have deadlines that
a slow machine meets, and none of them decides the verdict.
"""

import contextlib
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from edgeflow.errors import BadManifest, EdgeflowError
from edgeflow.host.discover import PopAccess
from edgeflow.host.linkfile import Link
from edgeflow.lab import clock
from edgeflow.lab.books import NotNow, books_of
from edgeflow.lab.errors import BadTrouble, NotInTime, NotPossibleHere
from edgeflow.lab.hands import Hands, until
from edgeflow.lab.judge import Seen, judge
from edgeflow.lab.load import Load, Watcher, subject_of
from edgeflow.lab.report import Report
from edgeflow.lab.scenario import Form, Scenario, Step
from edgeflow.sdk.client import Client

APP = Path(__file__).with_name("app")
EVENTS_S = 300.0
"""Longest wait for so many more inputs to be acknowledged, and for all of them at the end."""
READY_S = 180.0
SETTLE_S = 300.0
AROUND_S = (0.5, 1.0)
"""Inputs so long before and after a PoP is lost show how long work stood."""
Applying = Callable[[Path, PopAccess], None]
"""Applies the manifest in a file at a PoP and waits until its functions are ready. Raises BadManifest."""
Say = Callable[[str], None]


@dataclass
class Timeline:
    """When what was done, in monotonic seconds."""

    strikes: list[tuple[float, str]] = field(default_factory=list)
    """(moment, PoP that the others lost)."""
    mends: list[float] = field(default_factory=list)
    caught_up_s: list[float] = field(default_factory=list)


class Run:
    """One run of one scenario on a cluster. `clocks`: whether its clocks can be set wrong."""

    def __init__(
        self, scenario: Scenario, hands: Hands, applying: Applying, *, seed: int, form: Form = "short", clocks: bool = False, say: Say = lambda line: None
    ) -> None:  # fmt: skip
        if scenario.needs_clock and not clocks:
            raise NotPossibleHere(f"{scenario.name} sets clocks wrong, which this cluster was not started for.")
        self.scenario, self.hands, self.seed, self.form = scenario, hands, seed, form
        self.roles = scenario.cast(list(hands.cluster.pops), seed)
        self.pops = {pop: hands.cluster.pop(pop) for pop in self.roles.values()}
        self.namespace = f"lab-{secrets.token_hex(4)}"
        self._applying, self._clocks, self._say = applying, clocks, say
        self._books = books_of(hands.cluster)
        self._time = Timeline()
        self._chasers: list[threading.Thread] = []
        self._began_s = time.monotonic()

    def run(self) -> Report:
        """Do all of it. Raises BadTrouble when the cluster is hurt already, NotInTime."""
        self._check_whole()
        report = Report(
            self.scenario.name, self.scenario.document.what, self.seed, self.form, self.roles, [], sabotage=self.scenario.document.sabotage
        )  # fmt: skip
        links, carried = self.hands.links()
        with self._left_as_found(links):
            report.placed = self._apply(report)
            wish = self.scenario.load(self.form)
            entries = {self.roles[role]: self.pops[self.roles[role]] for role in wish.at}
            self._until_namespace_known()
            watchers = {
                pop: Watcher(access, self.namespace, looks_up=not self.scenario.needs_clock)
                for pop, access in self.pops.items()
            }
            load = Load(entries, self.namespace, wish)
            try:
                for step in self.scenario.steps(self.seed):
                    self._wait(step, load)
                    self._do(step)
                self._until_acked(load, wish.events)
                load.finish(EVENTS_S)
                self._settle()
                seen = self._look(watchers)
                for chaser in self._chasers:
                    chaser.join(SETTLE_S)
                self._measure(report, load, watchers)
                verdict = judge(
                    seen, self.namespace, acked={subject_of(n) for n in load.acked}, begun={subject_of(n) for n in load.begun},
                    subscriptions=self._subscriptions(report.placed),
                )  # fmt: skip
            finally:
                load.close()
                for watcher in watchers.values():
                    watcher.close()
        report.problems, report.lost, report.doubled = verdict.problems, len(verdict.lost), len(verdict.doubled)
        report.acked = len(load.acked)
        report.superseded = sum(
            one.ledger.counters.get(name, 0)
            for one in seen.values()
            for name in ("invocations_superseded", "results_superseded")
        )
        after = self.hands.links()[1]
        report.link_bytes = sum(count - carried.get(pair, 0) for pair, count in after.items())
        report.took_s = time.monotonic() - self._began_s
        return report

    # -- before and after ----------------------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        for link in self.hands.links()[0]:
            if link.line(link.a).cut or link.line(link.b).cut:
                raise BadTrouble(
                    f"{link.a} and {link.b} are cut off from each other.", hint="`edgeflow lab heal` first."
                )
        for pop, access in self.pops.items():
            if not _is_ready(access):
                raise BadTrouble(
                    f"{pop} is not ready.", hint="`edgeflow lab resume` first; `edgeflow status` says more."
                )

    @contextlib.contextmanager
    def _left_as_found(self, links: list[Link]) -> Iterator[None]:
        try:
            yield
        finally:
            for link in links:
                for origin, to in ((link.a, link.b), (link.b, link.a)):
                    line = link.line(origin)
                    self.hands.change(
                        origin, to, delay_ms=line.delay_ms, cut=line.cut, kbit_s=line.kbit_s, one_way=True
                    )
            for pop in self.pops:
                self.hands.resume(pop)
                if self._clocks:
                    clock.skew(self.hands.cluster.home.pop_dir(pop), 0)
            with contextlib.suppress(EdgeflowError):
                first = next(iter(self.pops.values()))
                with Client(first.api_url, first.token, retry_s=30.0) as client:
                    client.delete_manifest(self.namespace)

    def _apply(self, report: Report) -> list[str]:
        """The PoPs that the functions run at: those of the scenario, or the first of them where several are not possible."""
        wanted = [self.roles[role] for role in self.scenario.document.place]
        try:
            self._apply_at(wanted)
        except BadManifest:
            if len(wanted) == 1:
                raise
            report.notes.append(
                "functions run at one PoP, which this version has no other for: their work waits while it is away"
            )
            wanted = wanted[:1]
            self._apply_at(wanted)
        return wanted

    def _apply_at(self, pops: list[str]) -> None:
        common: dict[str, Any] = {
            "retry": {"attempts": 50, "backoff": "50ms", "timeout": "5s"},
            "place": {"pops": pops},
            "env": {"LAB_SABOTAGE": self.scenario.document.sabotage or ""},
        }
        functions: dict[str, dict[str, Any]] = {
            "step": {"subscribe": "start", "publish": "stepped"},
            "pair": {"subscribe": {"join": ["start", "stepped"], "by": "subject", "within": "30m"}, "publish": "done"},
        }
        manifest = {
            "namespace": self.namespace,
            "functions": {
                name: {"build": str(Path("./") / name), **function, **common} for name, function in functions.items()
            },
        }
        with tempfile.TemporaryDirectory(prefix="edgeflow-lab-") as folder:
            for name in functions:
                (Path(folder) / name).mkdir()
                (Path(folder) / name / "handler.py").write_text((APP / name / "handler.py").read_text())
            file = Path(folder) / "edgeflow.yaml"
            file.write_text(yaml.safe_dump(manifest, sort_keys=False))
            self._applying(file, self.pops[pops[0]])

    def _subscriptions(self, placed: list[str]) -> dict[str, dict[str, int]]:
        """How many inputs of functions each channel feeds at each PoP; unknown where functions are at several."""
        if len(placed) > 1:
            return {}
        feeds = {f"{self.namespace}/start": 2, f"{self.namespace}/stepped": 1}
        return {pop: feeds if pop in placed else {} for pop in self.pops}

    def _until_namespace_known(self) -> None:
        """Watchers are refused where nobody knows the namespace."""

        def known() -> bool:
            with contextlib.suppress(EdgeflowError):
                for access in self.pops.values():
                    with Client(access.api_url, access.token, retry_s=1.0) as client:
                        if self.namespace not in [one["namespace"] for one in client.namespaces()]:
                            return False
                return True
            return False

        until(known, "every PoP knows the scenario's namespace", READY_S, every_s=0.1)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _wait(self, step: Step, load: Load) -> None:
        began_s, had = time.monotonic(), len(load.acked)
        if step.wait_ready is not None:
            until(
                partial(_is_ready, self.pops[self.roles[step.wait_ready]]),
                f"{step.wait_ready} is ready",
                READY_S,
                every_s=0.1,
            )
        self._until_acked(load, had + step.after_events)
        time.sleep(max(0.0, began_s + step.after_s - time.monotonic()))

    def _until_acked(self, load: Load, count: int) -> None:
        until(lambda: len(load.acked) >= count, f"{count} inputs are acknowledged", EVENTS_S, every_s=0.01)

    def _do(self, step: Step) -> None:
        at_s = time.monotonic()
        said = self._carry_out(step)
        if said:
            self._say(f"{at_s - self._began_s:6.1f} s: {said}")
        if step.strikes is not None:
            self._time.strikes.append((at_s, self.roles[step.strikes]))
        if step.mends:
            mended_s = time.monotonic()
            self._time.mends.append(mended_s)
            chaser = threading.Thread(target=self._chase, args=(mended_s,), daemon=True)
            chaser.start()
            self._chasers.append(chaser)

    def _carry_out(self, step: Step) -> str:
        """Do it; what was done, in words."""
        hands = self.hands
        if step.kill is not None:
            hands.kill(target := hands.target(self._named(step.kill)))
            return f"{target} killed"
        if step.take_down is not None:
            hands.kill(target := hands.target(self._named(step.take_down)), stay_down=True)
            return f"{target} killed, and stays down"
        if step.restart is not None:
            hands.restart(pop := self.roles[step.restart])
            return f"{pop} restarted in order"
        if step.pause is not None:
            hands.pause(target := hands.target(self._named(step.pause)))
            return f"{target} stands"
        if step.resume is not None:
            hands.resume(pop := self.roles[step.resume])
            return f"{pop} goes on"
        if step.partition is not None:
            named = ",".join(self.roles[role] for role in step.partition.split(","))
            hands.partition(split := hands.split(named, one_way=step.one_way))
            return f"{split.pop} cut off from {', '.join(split.others)}" + (" (what it sends)" if step.one_way else "")
        if step.heal:
            hands.heal()
            return "all links whole"
        if step.wan is not None:
            a_b = step.wan.between
            pairs = hands.pairs() if a_b is None else [(self.roles[a_b[0]], self.roles[a_b[2]])]
            hands.wan(pairs, delay_ms=step.wan.delay_ms, kbit_s=step.wan.kbit_s)
            return f"links: delay {step.wan.delay or 'as it was'}, bandwidth {step.wan.bandwidth or 'as it was'}"
        if step.skew is not None:
            pop = self.roles[step.skew.pop]
            clock.skew(hands.cluster.home.pop_dir(pop), step.skew.off_ms)
            return f"clock of {pop} {step.skew.off_ms:+d} ms off"
        return ""

    def _named(self, who: str) -> str:
        role, slash, part = who.partition("/")
        return self.roles[role] + slash + part

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _chase(self, mended_s: float) -> None:
        """Note when every PoP holds all logs as they were when all first answered after a repair."""
        wanted: dict[tuple[str, int], int] = {}
        while time.monotonic() < mended_s + SETTLE_S:
            heads = [_heads(access, self.namespace) for access in self.pops.values()]
            known = [one for one in heads if one is not None]
            if len(known) == len(heads):
                if not wanted:
                    for one in known:
                        for log_id, seq in one.items():
                            wanted[log_id] = max(seq, wanted.get(log_id, 0))
                if all(one.get(log_id, 0) >= seq for one in known for log_id, seq in wanted.items()):
                    self._time.caught_up_s.append(time.monotonic() - mended_s)
                    return
            time.sleep(0.05)

    def _settle(self) -> None:
        """Nothing is under way anywhere (but dead letters), and all PoPs hold the same logs."""
        last: dict[str, object] = {}

        def settled() -> bool:
            heads = []
            for pop, access in self.pops.items():
                try:
                    waiting = self._books.waiting(pop, self.namespace)
                except NotNow as error:
                    last[pop] = str(error)
                    return False
                last[pop] = waiting
                if waiting.keys() - {"dead"}:
                    return False
                heads.append(_heads(access, self.namespace))
            return None not in heads and all(one == heads[0] for one in heads)

        try:
            until(settled, "nothing under way", SETTLE_S, every_s=0.2)
        except NotInTime:
            raise NotInTime(f"Work is still under way {SETTLE_S:g} s after the last step: {last}.") from None

    def _look(self, watchers: dict[str, Watcher]) -> dict[str, Seen]:
        seen = {}
        for pop, access in self.pops.items():
            book = self._books.read(pop, self.namespace)
            results = set(book.subjects(f"{self.namespace}/done"))
            watcher = watchers[pop]
            with contextlib.suppress(NotInTime):  # what it has not been shown is then called lost
                until(partial(_has_all, results, watcher), f"a client at {pop} has all results", READY_S)
            with Client(access.api_url, access.token, retry_s=60.0) as client:
                effects = [info.key.split("/")[2] for info in client.list(f"{self.namespace}/effects/")]
                tally = client.get(f"{self.namespace}/tally")
            standing = _standing(access, self.namespace, hash=True)
            assert standing is not None, f"{pop} does not say where it stands"
            seen[pop] = Seen(book, effects, int(json.loads(tally.data)) if tally else 0, str(standing["hash"]), watcher)
        return seen

    def _measure(self, report: Report, load: Load, watchers: dict[str, Watcher]) -> None:
        before_s, after_s = AROUND_S
        for struck_s, lost in self._time.strikes:
            others = [watcher for pop, watcher in watchers.items() if pop != lost]
            waits = [
                min(watcher.shown_s.get(subject_of(number), float("inf")) for watcher in others) - struck_s
                for number, acked in list(load.acked.items())
                if acked.pop != lost and struck_s - before_s <= acked.at_s <= struck_s + after_s
            ]
            waits = [wait for wait in waits if wait != float("inf")]
            if waits:
                longest_s = max(0.0, *waits)
                report.stood_s = max(longest_s, report.stood_s or 0.0)
                mended_s = min((at_s for at_s in self._time.mends if at_s > struck_s), default=float("inf"))
                report.waited_for_return |= struck_s + longest_s > mended_s
        for mended_s in self._time.mends:
            due = [subject_of(number) for number, acked in load.acked.items() if acked.at_s < mended_s]
            shown = [
                watcher.shown_s[subject]
                for watcher in watchers.values()
                for subject in due
                if subject in watcher.shown_s
            ]
            report.healed_s = max(0.0, report.healed_s or 0.0, *(at_s - mended_s for at_s in shown))
        report.caught_up_s = max(self._time.caught_up_s, default=None)


def _has_all(results: set[str], watcher: Watcher) -> bool:
    return results <= set(watcher.shown_s)


def _is_ready(access: PopAccess) -> bool:
    try:
        return httpx.get(f"{access.api_url}/readyz", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _standing(access: PopAccess, namespace: str, *, hash: bool) -> dict[str, object] | None:
    try:
        answer = httpx.get(
            f"{access.api_url}/v1/standing/{namespace}", params={"hash": str(hash).lower()}, timeout=30.0 if hash else 5.0,
            headers={"Authorization": f"Bearer {access.token}"}, trust_env=False,
        )  # fmt: skip
        found: dict[str, object] | None = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return found


def _heads(access: PopAccess, namespace: str) -> dict[tuple[str, int], int] | None:
    """How far each log is at a PoP; None while it does not answer."""
    standing = _standing(access, namespace, hash=False)
    if standing is None:
        return None
    heads = standing["heads"]
    assert isinstance(heads, list)
    return {(str(origin), int(epoch)): int(seq) for origin, epoch, seq in heads}
