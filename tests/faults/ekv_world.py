"""Three PoPs whose store is hurt on purpose, and everything to see what came of it.

What it is: `EkvWorld` starts the cluster behind the link proxy, with a Redis whose every end is a power cut, has its clients write (ekv_clients.py), hurts, heals,
waits until all PoPs hold the same, and says with `problems()` whether each acknowledged write is where it must be.
What it is not: what the clients do and remember.
What must stay true: what is judged is what a client sees over the documented HTTP API, at every PoP.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
from ekv_clients import KINDS, LONG_S, NAMESPACE, Clients, Done, Door, NoAnswer, body_of, tag_of
from histories import Added, Kept, Member, Written, kept, miscounted, misplaced
from needs import missing
from world import HERE, NotInTime, until

from edgeflow.host.local import LocalCluster, ProcessName
from edgeflow.host.supervisor import default_commands
from edgeflow.lab import clock
from edgeflow.settings import PopSettings

POPS = ("la", "ny", "sf")
SETTLE_S = 90.0
PAGE = 1000


@dataclass
class Seen:
    """Everything a PoP shows to a client."""

    registers: dict[str, tuple[str, str]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    members: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of sets and maps."""


class EkvWorld(Clients):
    """The cluster, its clients and its troubles. Use `EkvWorld.running()`."""

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, folder: Path, *, seed: int, pops: Sequence[str] = POPS, kinds: Sequence[str] = KINDS, settings: dict[str, Any] | None = None,
        redis_options: Sequence[str] = (), power: bool = True,
    ) -> "Iterator[EkvWorld]":  # fmt: skip
        """Start the cluster and end it. `power`: each end of a Redis is a power cut."""
        libraries = {name: library(folder, name) for name in ("clockskew", "powercut")}
        held = [sys.executable, str(HERE / "held.py"), "{dir}"]
        usual = default_commands()
        cut = [sys.executable, str(HERE / "powercut.py"), str(libraries["powercut"]), "{dir}/power"] if power else []
        commands = {
            "redis": [*held, "-", *cut, *usual["redis"], *redis_options],
            "data": [*held, str(libraries["clockskew"]), *usual["data"]],
            "control": [*held, str(libraries["clockskew"]), *usual["control"]],
        }
        with LocalCluster(pops, commands=commands, settings=settings) as cluster:
            world = cls(cluster, seed, kinds)
            with contextlib.closing(world.door(pops[0])) as door:
                until(
                    lambda: door.ask("PUT", f"/v1/ekv/{NAMESPACE}/r/first", body_of("first", 40)).status < 300,
                    "the first value",
                    30,
                )
            world.done.append(Done(-1, pops[0], "put", "r/first", value="first", outcome="ok", version=""))
            for pop in pops:
                with contextlib.closing(world.door(pop)) as door:
                    until(
                        lambda door=door: door.ask("GET", f"/v1/ekv/{NAMESPACE}/r/first").status == 200,
                        f"the first value at {pop}",
                        60,
                    )
            yield world

    # -- what PoPs show ------------------------------------------------------------------------------------------------

    def listing(self, door: Door) -> list[dict[str, Any]]:
        """All keys of a PoP with kind, version and size. Raises NoAnswer."""
        items: list[dict[str, Any]] = []
        after = ""
        while True:
            answer = door.ask("GET", f"/v1/ekv/{NAMESPACE}", limit=PAGE, after=after or None)
            if answer.status == 404:
                return items
            if answer.status != 200:
                raise NoAnswer(f"listing: {answer.status} {answer.code}")
            page = answer.json()
            items += page["items"]
            if not page["next"]:
                return items
            after = page["next"]

    def look(self, pop: str) -> Seen:
        """Read everything at a PoP, as a client does. Raises NoAnswer."""
        seen = Seen()
        with contextlib.closing(self.door(pop)) as door:
            for item in self.listing(door):
                key, kind = item["key"].removeprefix(f"{NAMESPACE}/"), item.get("kind", "register")
                answer = door.ask("GET", f"/v1/ekv/{NAMESPACE}/{key}", headers={"Accept": "*/*"})
                if answer.status == 404:
                    continue
                if answer.status != 200:
                    raise NoAnswer(f"{key}: {answer.status} {answer.code}")
                if kind == "counter":
                    seen.counters[key] = int(answer.body)
                elif kind == "set":
                    seen.members[key] = dict.fromkeys(answer.json(), "1")
                elif kind == "map":
                    seen.members[key] = answer.json()
                else:
                    seen.registers[key] = (answer.version or "", tag_of(answer.body))
        return seen

    def hashes(self) -> dict[str, str]:
        """What each PoP that is left calls the hash of its content. Raises NoAnswer."""
        found = {}
        for pop in self.alive:
            with contextlib.closing(self.door(pop)) as door:
                answer = door.ask("GET", f"/v1/standing/{NAMESPACE}", hash="true")
                if answer.status != 200:
                    raise NoAnswer(f"hash: {answer.status} {answer.code}")
                found[pop] = str(answer.json()["hash"])
        return found

    def converge(self, deadline_s: float = SETTLE_S) -> float:
        """Wait until all PoPs that are left show the same, by their hashes and to a client; seconds it took. Before that, until each short time to live is over."""
        brief_s = max(
            (one.expires_s for one in self.done if one.expires_s < time.monotonic() + LONG_S / 2), default=0.0
        )
        time.sleep(max(0.0, brief_s - time.monotonic()))
        began_s = time.monotonic()
        begun = len(self.done)

        def same() -> bool:
            # By their hashes often, since that is cheap; to a client, who reads every key, only then.
            with contextlib.suppress(NoAnswer):
                return len(set(self.hashes().values())) == 1 and not self.differences()
            return False

        try:
            until(same, "the same content everywhere", deadline_s, every_s=0.1)
        except NotInTime:
            with contextlib.suppress(NoAnswer):
                raise NotInTime(
                    f"PoPs still differ {deadline_s:g} s after all was healed: {self.hashes()}, {self.differences()}"
                ) from None
            raise
        took_s = time.monotonic() - began_s
        self._safe = begun
        return took_s

    def differences(self, most: int = 10) -> list[str]:
        """Where PoPs differ, to a client. Nothing to compare is a difference too."""
        try:
            seen = {pop: self.look(pop) for pop in self.alive}
        except NoAnswer as error:
            return [str(error)]
        found = []
        for what in ("registers", "counters", "members"):
            tables = {pop: getattr(one, what) for pop, one in seen.items()}
            for key in sorted(set().union(*tables.values())):
                values = {pop: table.get(key) for pop, table in tables.items()}
                if len({repr(value) for value in values.values()}) > 1:
                    found.append(f"{key}: {values}")
        return found[:most]

    def problems(self) -> list[str]:
        """What of the acknowledged writes is not where it must be, at each PoP that is left. All must be healed and the same."""
        found = self.internal_errors()
        now_s = time.monotonic()
        for pop in self.alive:
            seen = self.look(pop)
            verdict = self.registers_at(seen, now_s)
            found += [f"{pop}: lost: {line}" for line in verdict.lost] + [
                f"{pop}: strange: {line}" for line in verdict.strange
            ]
            adds = [Added(one.key, one.by, one.outcome, one.forgivable) for one in self.done if one.kind == "incr"]
            found += [f"{pop}: counter {line}" for line in miscounted(adds, seen.counters)]
            placed = [
                Member(one.key, one.member, one.value, one.outcome, one.forgivable)
                for one in self.done
                if one.kind in ("sadd", "srem", "mset", "munset")
            ]
            found += [f"{pop}: member {line}" for line in misplaced(placed, seen.members)]
            for pair in sorted({key.rpartition("/")[0] for key in seen.registers if key.startswith("p/")}):
                left, right = (seen.registers.get(f"{pair}/{side}", ("", ""))[1] for side in ("left", "right"))
                if left != right:
                    found.append(f"{pop}: a batch was torn: {pair}: {left!r} and {right!r}")
        return found

    def internal_errors(self) -> list[str]:
        """Requests that ended in an error nobody has thought of, with the end of their traceback."""
        found = []
        for pop in self.cluster.pops:
            for line in (self.cluster.home.pop_logs_dir(pop) / "control.log").read_text(errors="replace").splitlines():
                if '"request_failed"' in line:
                    entry = json.loads(line)
                    found.append(f"{pop}: {entry['method']} {entry['path']}: {entry['traceback'].strip()[-600:]}")
        return found

    def registers_at(self, seen: Seen, now_s: float) -> Kept:
        """What became of registers at a PoP that shows `seen`."""
        registers = {key: shown for key, shown in seen.registers.items() if key != "r/first"}
        writes = []
        for one in self.done:
            made = Written(one.key, one.value, one.version, one.outcome, one.forgivable, one.expires_s)
            if one.kind in ("put", "once", "cas", "big", "delete", "brief") and one.number >= 0:
                writes.append(made)
            elif one.kind == "batch":
                # The answer names the version of the last of its writes only.
                writes += [replace(made, key=f"{one.member}/{side}", version=one.version if side == "right" else None,
                                   outcome=one.outcome if side == "right" else "unknown" if one.outcome == "ok" else one.outcome)
                           for side in ("left", "right")]  # fmt: skip
        return kept(writes, registers, now_s)

    # -- hurting -------------------------------------------------------------------------------------------------------

    def cut(self, a: str, b: str) -> None:
        """Nothing passes between two PoPs any more."""
        self.cluster.set_link(a, b, cut=True)

    def isolate(self, pop: str) -> None:
        """Nothing passes between a PoP and the others."""
        for other in self.cluster.pops:
            if other != pop:
                self.cut(pop, other)

    def heal(self) -> None:
        """All links are quick and whole, all clocks right, all disks have room."""
        for index, a in enumerate(self.cluster.pops):
            for b in self.cluster.pops[index + 1 :]:
                self.cluster.set_link(a, b, cut=False, delay_ms=0, kbit_s=0)
        for pop in self.alive:
            self.skew(pop, 0)
            (self.folder(pop) / "power" / "full").unlink(missing_ok=True)
            self.on(pop)

    def kill(self, pop: str, name: ProcessName) -> None:
        """`kill -9`; the supervisor starts it again. A Redis loses what no fsync has covered."""
        with contextlib.suppress(ProcessLookupError):
            self.cluster.kill(pop, name)

    def stand(self, pop: str, name: ProcessName, seconds: float) -> None:
        """Stop a process for a while, with all its open connections."""
        pid = self.cluster.kill(pop, name, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def skew(self, pop: str, off_ms: int) -> None:
        """The wall clock of a PoP is off by so much from now on."""
        new = self.folder(pop) / "skew.new"
        new.write_text(str(off_ms))
        new.replace(self.folder(pop) / "skew")

    def fill(self, pop: str) -> None:
        """The disk of a PoP's Redis is full to the last byte."""
        (self.folder(pop) / "power" / "full").touch()

    def off(self, pop: str) -> None:
        """The machine is off: all processes of the PoP end at once and none comes back before `on`."""
        (self.folder(pop) / "hold").touch()
        for name in ("control", "data", "redis"):
            pid = self.cluster.pid(pop, name)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                until(lambda name=name, pid=pid: self.cluster.pid(pop, name) != pid, f"{pop}/{name} to end", 20)

    def on(self, pop: str) -> None:
        """The machine is on again, if it was off."""
        (self.folder(pop) / "hold").unlink(missing_ok=True)

    def backup(self, pop: str, where: Path) -> None:
        """Copy what the PoP has on its disk: Redis and the agent's folder."""
        pid = self.cluster.kill(pop, "redis", signal.SIGSTOP)
        shutil.rmtree(where, ignore_errors=True)
        try:
            for name in ("redis", "state"):
                shutil.copytree(self._disk(pop, name), where / name, symlinks=True)
        finally:
            os.kill(pid, signal.SIGCONT)

    def restore(self, pop: str, where: Path) -> None:
        """The PoP's disk is what it was at the backup. What was under way there has an unknown outcome."""
        self.off(pop)
        self.set_back[pop] += 1
        for name in ("redis", "state"):
            shutil.rmtree(self._disk(pop, name))
            shutil.copytree(where / name, self._disk(pop, name), symlinks=True)
        (self.folder(pop) / "power" / "journal").unlink(missing_ok=True)
        self.on(pop)

    def destroy(self, pop: str, *, returns: bool) -> None:
        """Everything on the PoP's disk is gone: with it, perhaps, what was acknowledged as durable there since all PoPs were the same. `returns`: the empty machine is started again."""
        self.off(pop)
        self.set_back[pop] += 1
        for one in self.done:
            if one.pop == pop and one.class_ == "durable" and one.number >= self._safe:
                one.forgivable = True
        for name in ("redis", "state"):
            for path in self._disk(pop, name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder(pop) / "power" / "journal").unlink(missing_ok=True)
        if returns:
            self.on(pop)
        else:
            self.destroyed.add(pop)

    def blob_files(self, pop: str) -> list[Path]:
        """The files of large bodies at a PoP, largest first."""
        folder = self._disk(pop, "state") / "blobs" / NAMESPACE
        found = [path for path in folder.rglob("*") if path.is_file() and len(path.name) == 64]
        return sorted(found, key=lambda path: (-path.stat().st_size, path.name))

    def trimmed(self, pop: str, origin: str) -> bool:
        """Whether the beginning of an origin's log is gone at a PoP."""
        settings = PopSettings.load(self.cluster.home.config_file(pop))
        with redis.Redis(unix_socket_path=str(settings.store.redis_socket), protocol=2, socket_timeout=20) as door:
            prefix = f"ef:{{{NAMESPACE}}}:"
            heads = {name.decode(): int(seq) for name, seq in door.hgetall(prefix + "heads").items()}
            logs = [name for name in heads if name.startswith(f"{origin}:")]
            return any(door.xlen(f"{prefix}log:{name}") < heads[name] for name in logs)

    def folder(self, pop: str) -> Path:
        """The PoP's folder."""
        return self.cluster.home.pop_dir(pop)

    def _disk(self, pop: str, name: str) -> Path:
        settings = PopSettings.load(self.cluster.home.config_file(pop))
        return settings.state_dir if name == "state" else self.folder(pop) / "redis"


def library(folder: Path, name: str) -> Path:
    """The compiled <name>.c."""
    if shutil.which("cc") is None:
        missing("cc", "scripts/test-faults installs it")
    target = folder / f"{name}.so"
    if not target.exists():
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            "-o",
            str(target),
            str(clock.SOURCE if name == "clockskew" else HERE / f"{name}.c"),
            "-ldl",
        ]
        subprocess.run(command, check=True, timeout=60)
    return target


def seed_of_the_run() -> int:
    """EDGEFLOW_FAULTS_SEED, or a new one; printed."""
    seed = int(os.environ.get("EDGEFLOW_FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"\nEDGEFLOW_FAULTS_SEED={seed}")
    return seed


Figure = Callable[[str], None]
