"""Where the files of an embedded cluster are, and what stays the same over restarts.

What it is: the folder `$EDGEFLOW_HOME` as names, and its identity document (cluster id, PoPs, ports, folder for sockets).
What must stay true: a second start finds the same identity; the folder for sockets is short (a socket's path has at most 107 bytes) and ours alone.
"""

import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from edgeflow.host.errors import BadClusterSpec, HostError
from edgeflow.host.files import ensure_dir, read_json, write_json
from edgeflow.host.ports import Moved, Name, any_free, assign

DEFAULT_POPS = ("chicago", "la", "ny")
POP_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def default_home() -> Path:
    """$EDGEFLOW_HOME, or `.edgeflow` in the current folder."""
    return Path(os.environ.get("EDGEFLOW_HOME") or ".edgeflow").absolute()


def check_pops(pops: tuple[str, ...]) -> tuple[str, ...]:
    """The PoP ids as given. Raises BadClusterSpec naming the wrong one."""
    if not pops:
        raise BadClusterSpec("A cluster needs at least one PoP.")
    for pop in pops:
        if not POP_ID.fullmatch(pop):
            raise BadClusterSpec(f"{pop!r} is not a PoP id.")
        if pops.count(pop) > 1:
            raise BadClusterSpec(f"PoP {pop!r} is named twice.")
    return pops


def check_host(host: str) -> str:
    """The address of this machine as identity.json has it: empty for loopback, where nobody else is. Raises BadClusterSpec for what others cannot dial."""
    if host == "localhost" or host.startswith("127."):
        return ""
    if not HOST.fullmatch(host) or host == "0.0.0.0":
        raise BadClusterSpec(
            f"{host[:80]!r} is not an address at which other machines reach this one.",
            hint="A name or an IPv4 address, without scheme and port: --host 192.0.2.10. IPv6 only by a name.",
        )
    return host


def pairs(pops: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every pair of PoPs, the one that dials (the smaller id) first."""
    return list(combinations(sorted(pops), 2))


@dataclass(frozen=True)
class Home:
    """The folder of a cluster. Every path is absolute."""

    root: Path

    @property
    def cluster_file(self) -> Path:
        """What runs now, for the CLI, the SDK and tests."""
        return self.root / "cluster.json"

    @property
    def identity_file(self) -> Path:
        return self.root / "identity.json"

    @property
    def settings_file(self) -> Path:
        """Optional: settings merged over every PoP's pop.json, for operators."""
        return self.root / "settings.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def ca_dir(self) -> Path:
        return self.root / "ca"

    @property
    def wan_file(self) -> Path:
        return self.root / "wan.json"

    @property
    def venvs_dir(self) -> Path:
        return self.root / "venvs"

    @property
    def joined_dir(self) -> Path:
        """Folders of PoPs that joined a cluster by a token, beside the cluster of this folder."""
        return self.root / "joined"

    def joined(self, pop: str) -> "Home":
        """The folder of one of those."""
        return Home(self.joined_dir / pop)

    def all_joined(self) -> "list[Home]":
        """Those that are there."""
        return [Home(file.parent) for file in sorted(self.joined_dir.glob("*/identity.json"))]

    def pop_dir(self, pop: str) -> Path:
        return self.root / "pops" / pop

    def config_file(self, pop: str) -> Path:
        return self.pop_dir(pop) / "pop.json"

    def hold_file(self, pop: str) -> Path:
        """While it exists none of the PoP's processes is started again: it is a machine that is off."""
        return self.pop_dir(pop) / "hold"

    def secrets_dir(self, pop: str) -> Path:
        return self.pop_dir(pop) / "secrets"

    def pop_logs_dir(self, pop: str) -> Path:
        return self.pop_dir(pop) / "logs"

    def instance_logs_dir(self, pop: str) -> Path:
        return self.pop_logs_dir(pop) / "instances"


@dataclass(frozen=True)
class Identity:
    """What stays the same over restarts of one embedded cluster."""

    cluster: str
    run_root: Path
    pops: tuple[str, ...]
    ports: dict[Name, int] = field(default_factory=dict)
    host: str = ""
    """Where other machines reach this one; empty = they do not, everything is on loopback."""

    @classmethod
    def load(cls, home: Home) -> "Identity | None":
        """The identity of the cluster in `home`, or None when it has none yet."""
        document = read_json(home.identity_file)
        if document is None:
            return None
        ports: dict[Name, int] = {}
        for name, port in document.get("ports", {}).items():
            kind, _, owner = name.partition(":")
            ports[kind, owner] = int(port)
        return cls(
            document["cluster"], Path(document["run_root"]), tuple(document["pops"]), ports, document.get("host", "")
        )

    def save(self, home: Home) -> None:
        ports = {f"{kind}:{owner}": port for (kind, owner), port in self.ports.items()}
        document: dict[str, Any] = {
            "cluster": self.cluster,
            "run_root": str(self.run_root),
            "pops": list(self.pops),
            "ports": ports,
        }
        if self.host:
            document["host"] = self.host
        write_json(home.identity_file, document)

    def run_dir(self, pop: str) -> Path:
        return self.run_root / pop


def plan(
    home: Home, pops: tuple[str, ...] | None, *, any_ports: bool = False, host: str | None = None
) -> tuple[Identity, list[Moved]]:
    """Decide cluster id, PoPs, ports and the folder for sockets, and write them down.

    `pops` None = those of the last start, else the default three. `any_ports` takes whatever is free instead of the documented defaults (tests).
    `host` None = that of the last start.
    Ports that were used before are kept unless something else has them now; the second result says which moved.
    """
    ensure_dir(home.root)
    before = Identity.load(home)
    chosen = check_pops(pops or (before.pops if before else DEFAULT_POPS))
    if before is None:
        before = Identity(f"c-{secrets.token_hex(6)}", _new_run_root(), chosen)
    names: list[Name] = [(kind, pop) for kind in ("api", "mqtt", "link") for pop in chosen]
    names += [("wan", f"{a},{b}") for a, b in pairs(chosen)]
    known = dict(before.ports)
    if any_ports:
        for name in names:
            known.setdefault(name, any_free())
    ports, moved = assign(names, known)
    identity = replace(
        before,
        run_root=_usable_run_root(before.run_root),
        pops=chosen,
        ports={**before.ports, **ports},
        host=before.host if host is None else check_host(host),
    )
    identity.save(home)
    return identity, moved


def draft(pop: str, *, any_ports: bool = False) -> Identity:
    """Ports and a folder for sockets for one PoP whose cluster is not known yet. Nothing is written."""
    names: list[Name] = [(kind, pop) for kind in ("api", "mqtt", "link")]
    ports, _moved = assign(names, {name: any_free() for name in names} if any_ports else {})
    return Identity("", _usable_run_root(_new_run_root()), (pop,), ports)


def _new_run_root() -> Path:
    base = Path(tempfile.gettempdir())
    if len(str(base)) > 40:  # an unusual TMPDIR would use up the path length
        base = Path("/tmp")
    return base / f"ef-{secrets.token_hex(4)}"


def _usable_run_root(path: Path) -> Path:
    """The folder, made if needed, 0700 and ours. Others may write in /tmp: one that is not ours is left alone and another is used."""
    for candidate in (path, _new_run_root()):
        try:
            candidate.mkdir(mode=0o700)
        except FileExistsError:
            status = os.lstat(candidate)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            candidate.chmod(0o700)
        return candidate
    raise HostError(f"No folder for sockets could be made: {path} belongs to somebody else.")
