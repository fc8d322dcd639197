"""Writes every file that the PoPs of a cluster need: settings, secrets, certificates, broker and store configuration, the proxy's document.

What it is: one function from a description (`ClusterSpec`) to files, the same for both modes; and a module entry point for the init container of
Docker mode (`python -m edgeflow.host.provision --mode docker ...`).
What it is not: a process manager, or a generator of manifests.
What must stay true: doing it twice changes no secret, no certificate and no data; a secret is 0600 from its first byte on.
"""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic

from edgeflow.errors import EdgeflowError
from edgeflow.host import brokerconf, certs, ports, programs, storeconf
from edgeflow.host.access import public_access
from edgeflow.host.errors import BadClusterSpec, MissingProgram
from edgeflow.host.files import Owner, ensure_dir, ensure_secret, read_json, write_file, write_json
from edgeflow.host.layout import Home, Identity, check_pops, pairs
from edgeflow.host.linkfile import Link, save_links
from edgeflow.settings import PopSettings

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
SECRETS_KEY = "secrets.key"
SECRET_FILES = ("gateway.password", "admin.password", "operator.password", "operator.token")


@dataclass(frozen=True)
class PopSpec:
    """One PoP: folders (written here, and seen by its processes under the same paths), addresses and ports."""

    pop: str
    config_dir: Path
    """pop.json and secrets/: for the agent only."""
    broker_dir: Path
    """mosquitto.conf and dynsec.json."""
    store_dir: Path
    """redis.conf; Redis keeps its data in `redis/` below."""
    state_dir: Path
    """Blob files and epochs."""
    run_dir: Path
    """Unix sockets."""
    api_port: int
    mqtt_port: int
    link_port: int
    bind: str = LOOPBACK
    """Address that broker, API and link listen on."""
    broker_bind: str | None = None
    """Address that the broker listens on, if it is another one."""
    broker_host: str = LOOPBACK
    """Where the agent reaches the broker."""
    link_host: str = LOOPBACK
    """Where the link proxy and other PoPs reach this PoP."""
    public_host: str = LOOPBACK
    """Where a client reaches broker and API."""
    public_mqtt_host: str | None = None
    """Where it reaches the broker, if that is elsewhere."""
    public_api_port: int | None = None
    """None = api_port."""
    public_mqtt_port: int | None = None
    """None = mqtt_port."""
    public_secrets_dir: Path | None = None
    """Where a client finds operator.token and operator.password; None = in config_dir."""
    socket_volume: str | None = None
    """Docker mode: the volume that holds run_dir."""

    @property
    def secrets_dir(self) -> Path:
        return self.config_dir / "secrets"

    @property
    def function_socket(self) -> Path:
        """The broker's socket for functions with a `qos: 0` input."""
        return self.run_dir / "f" / "s"

    @property
    def config_file(self) -> Path:
        return self.config_dir / "pop.json"


@dataclass(frozen=True)
class ClusterSpec:
    """A whole cluster."""

    cluster: str
    mode: Literal["embedded", "docker"]
    pops: tuple[PopSpec, ...]
    ca_dir: Path
    wan_file: Path
    plugin: Path
    """The broker's dynamic-security plugin, as the broker sees it."""
    wan_ports: Mapping[tuple[str, str], int]
    """Port of the link proxy by pair (dialer, answerer)."""
    wan_bind: str = LOOPBACK
    wan_host: str = LOOPBACK
    """Where PoPs reach the link proxy."""
    owner: Owner | None = None
    """Who runs the processes; None = whoever provisions."""
    broker_user: str | None = None
    store_memory_bytes: int = 1 << 30
    venvs_dir: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings merged over every PoP's pop.json."""


def provision(spec: ClusterSpec) -> None:
    """Write all files of `spec`; what is there and still valid stays. Raises BadClusterSpec when the overrides do not fit PopSettings."""
    certs.ensure_ca(spec.ca_dir, spec.cluster)
    for pop in spec.pops:
        _provision_pop(spec, pop)
    _provision_wan(spec)


def _provision_pop(spec: ClusterSpec, pop: PopSpec) -> None:
    owner = spec.owner
    redis_dir = pop.store_dir / "redis"
    folders = (pop.config_dir, pop.secrets_dir, pop.broker_dir, pop.store_dir, redis_dir, pop.state_dir, pop.run_dir)
    for folder in folders:
        ensure_dir(folder, owner=owner)
    # Containers of functions come in by the group of this folder.
    ensure_dir(pop.function_socket.parent, owner=owner, mode=0o750)
    passwords = {
        name.removesuffix(".password"): ensure_secret(pop.secrets_dir / name, owner=owner)
        for name in SECRET_FILES
        if name.endswith(".password")
    }
    ensure_secret(pop.secrets_dir / "operator.token", owner=owner)
    certs.ensure_pop_certificate(spec.ca_dir, pop.secrets_dir, pop.pop, owner=owner)
    if (spec.ca_dir / "ca.key").exists():
        write_file(pop.secrets_dir / "ca.key", (spec.ca_dir / "ca.key").read_bytes(), owner=owner)
    write_file(pop.secrets_dir / SECRETS_KEY, ensure_secret(spec.ca_dir / SECRETS_KEY), owner=owner)

    broker = brokerconf.BrokerParams(
        bind=pop.broker_bind or pop.bind,
        port=pop.mqtt_port,
        socket=pop.run_dir / "m.sock",
        function_socket=pop.function_socket,
        dynsec_file=pop.broker_dir / "dynsec.json",
        plugin=spec.plugin,
        user=spec.broker_user,
    )
    write_file(pop.broker_dir / "mosquitto.conf", brokerconf.mosquitto_conf(broker), owner=owner)
    if not broker.dynsec_file.exists():  # it may hold accounts that were added while it ran
        write_file(broker.dynsec_file, brokerconf.dynsec(passwords), owner=owner)
    store = storeconf.StoreParams(pop.run_dir / "r.sock", redis_dir, spec.store_memory_bytes)
    write_file(pop.store_dir / "redis.conf", storeconf.redis_conf(store), owner=owner)

    document = pop_settings(spec, pop).model_dump(mode="json", exclude_defaults=True)
    write_json(pop.config_file, document, owner=owner)


def pop_settings(spec: ClusterSpec, pop: PopSpec) -> PopSettings:
    """The settings of one PoP of `spec`."""
    secret_files = pop.public_secrets_dir or pop.secrets_dir
    api_port = pop.public_api_port or pop.api_port
    document: dict[str, Any] = {
        "pop": pop.pop,
        "cluster": spec.cluster,
        "mode": spec.mode,
        "state_dir": str(pop.state_dir),
        "run_dir": str(pop.run_dir),
        "store": {"redis_socket": str(pop.run_dir / "r.sock")},
        "mqtt": {
            "socket": str(pop.run_dir / "m.sock"),
            "host": pop.broker_host,
            "port": pop.mqtt_port,
            "username": brokerconf.GATEWAY,
            "password_file": str(pop.secrets_dir / "gateway.password"),
            "function_socket": str(pop.function_socket),
            "admin_username": brokerconf.ADMIN,
            "admin_password_file": str(pop.secrets_dir / "admin.password"),
        },
        "link": {
            "host": pop.bind,
            "port": pop.link_port,
            "ca": str(pop.secrets_dir / "ca.pem"),
            "cert": str(pop.secrets_dir / "link.pem"),
            "key": str(pop.secrets_dir / "link.key"),
            "ca_key": str(pop.secrets_dir / "ca.key") if (spec.ca_dir / "ca.key").exists() else None,
            "peers": _peers(spec, pop),
            "advertise": {"host": pop.link_host, "port": pop.link_port} if pop.link_host != pop.bind else None,
        },
        "api": {"host": pop.bind, "port": pop.api_port, "token_file": str(pop.secrets_dir / "operator.token")},
        "public": {
            "api_url": f"http://{pop.public_host}:{api_port}",
            "api_token_file": str(secret_files / "operator.token"),
            "mqtt_host": pop.public_mqtt_host or pop.public_host,
            "mqtt_port": pop.public_mqtt_port or pop.mqtt_port,
            "mqtt_ws_url": f"ws://{pop.public_host}:{api_port}/mqtt",
            "mqtt_username": brokerconf.OPERATOR,
            "mqtt_password_file": str(secret_files / "operator.password"),
        },
        "runner": {
            "venvs_dir": str(spec.venvs_dir) if spec.venvs_dir else None,
            "socket_volume": pop.socket_volume,
            "secrets_key_file": str(pop.secrets_dir / SECRETS_KEY),
        },
    }
    try:
        return PopSettings.model_validate(_merge(document, spec.overrides))
    except pydantic.ValidationError as error:
        raise BadClusterSpec(
            f"The settings of PoP {pop.pop} are not valid: {error}",
            hint="Correct settings.json; docs/settings.md lists the fields.",
        ) from None


def _peers(spec: ClusterSpec, pop: PopSpec) -> dict[str, dict[str, Any]]:
    """Whom `pop` knows: those it dials by way of the proxy, the others (which dial it) at their own address."""
    peers: dict[str, dict[str, Any]] = {}
    for other in spec.pops:
        if other.pop == pop.pop:
            continue
        proxy_port = spec.wan_ports.get((pop.pop, other.pop))
        if proxy_port is not None:
            peers[other.pop] = {"host": spec.wan_host, "port": proxy_port}
        else:
            peers[other.pop] = {"host": other.link_host, "port": other.link_port}
    return peers


def _provision_wan(spec: ClusterSpec) -> None:
    """Write the proxy's document. Every start begins with whole links without delay."""
    by_id = {pop.pop: pop for pop in spec.pops}
    links = [
        Link(a, b, spec.wan_bind, port, by_id[b].link_host, by_id[b].link_port)
        for (a, b), port in sorted(spec.wan_ports.items())
    ]
    ensure_dir(spec.wan_file.parent, owner=spec.owner)
    save_links(spec.wan_file, links)
    if spec.owner is not None:
        os.chown(spec.wan_file, *spec.owner)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = _merge(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return result


def embedded_spec(home: Home, identity: Identity) -> ClusterSpec:
    """The spec of an embedded cluster in `home`. Raises MissingProgram without the broker's plugin."""
    plugin = programs.find_plugin()
    if plugin is None:
        raise MissingProgram(
            f"{programs.PLUGIN_NAME} was not found.", hint="Install Mosquitto >= 2.0 (Debian: mosquitto)."
        )
    pops = tuple(
        PopSpec(
            pop=pop,
            config_dir=home.pop_dir(pop),
            broker_dir=home.pop_dir(pop),
            store_dir=home.pop_dir(pop),
            state_dir=home.pop_dir(pop) / "state",
            run_dir=identity.run_dir(pop),
            api_port=identity.ports["api", pop],
            mqtt_port=identity.ports["mqtt", pop],
            link_port=identity.ports["link", pop],
            # MQTT is not encrypted, and no other PoP needs it: it stays here, for a proxy that speaks TLS.
            bind=EVERYWHERE if identity.host else LOOPBACK,
            broker_bind=LOOPBACK,
            link_host=identity.host or LOOPBACK,
            public_host=identity.host or LOOPBACK,
            public_mqtt_host=LOOPBACK,
        )
        for pop in identity.pops
    )
    return ClusterSpec(
        cluster=identity.cluster,
        mode="embedded",
        pops=pops,
        ca_dir=home.ca_dir,
        wan_file=home.wan_file,
        plugin=plugin,
        wan_ports={(a, b): identity.ports["wan", f"{a},{b}"] for a, b in pairs(identity.pops)},
        # As root Mosquitto would drop to its own account, which cannot read files that are 0600.
        broker_user="root" if os.geteuid() == 0 else None,
        store_memory_bytes=_share_of_memory(len(pops)),
        venvs_dir=home.venvs_dir,
        overrides=read_json(home.settings_file) or {},
    )


def _share_of_memory(pops: int) -> int:
    """Half the machine's memory over all PoPs, within 256 MiB and 4 GiB for each."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(256 << 20, min(4 << 30, total // 2 // pops))


def docker_spec(args: argparse.Namespace) -> ClusterSpec:
    """The spec described by the options of the module entry point."""
    ids = check_pops(tuple(pop.strip() for pop in args.pops.split(",") if pop.strip()))
    pops = tuple(
        PopSpec(
            pop=pop,
            config_dir=Path(args.config_dir.format(pop=pop)),
            broker_dir=Path(args.broker_dir.format(pop=pop)),
            store_dir=Path(args.store_dir.format(pop=pop)),
            state_dir=Path(args.state_dir.format(pop=pop)),
            run_dir=Path(args.run_dir.format(pop=pop)),
            api_port=args.api_port + position,
            mqtt_port=args.mqtt_port + position,
            link_port=args.link_port + position,
            bind=args.bind,
            broker_host=args.broker_host.format(pop=pop),
            link_host=args.link_host.format(pop=pop),
            public_host=args.public_host,
            public_api_port=_nth(args.public_api_port, position),
            public_mqtt_port=_nth(args.public_mqtt_port, position),
            public_secrets_dir=Path(".edgeflow") / public_secrets(pop),
            socket_volume=args.socket_volume.format(pop=pop) if args.socket_volume else None,
        )
        for position, pop in enumerate(ids)
    )
    ca_dir = Path(args.ca_dir)
    overrides = json.loads(args.settings) if args.settings else {}
    return ClusterSpec(
        cluster=args.cluster or _docker_cluster_id(ca_dir),
        mode="docker",
        pops=pops,
        ca_dir=ca_dir,
        wan_file=Path(args.wan_dir) / "wan.json",
        plugin=Path(args.plugin) if args.plugin else _plugin(),
        wan_ports={pair: args.wan_port + position for position, pair in enumerate(pairs(ids))},
        wan_bind=args.bind,
        wan_host=args.wan_host,
        owner=args.owner,
        store_memory_bytes=args.store_memory_mib << 20,
        overrides=overrides,
    )


def public_secrets(pop: str) -> Path:
    """Docker mode: folder of the operator's secrets, relative to $EDGEFLOW_HOME. Apart from those of an embedded cluster in the same folder."""
    return Path("docker") / pop


def publish_access(spec: ClusterSpec, home_dir: Path, owner_of: Path | None) -> None:
    """Put what a client on the user's machine needs into its $EDGEFLOW_HOME, mounted at `home_dir`.

    Paths inside are relative to that folder: nobody knows here what it is called out there.
    """
    status = (owner_of or home_dir).stat()
    owner = (status.st_uid, status.st_gid)
    ensure_dir(home_dir, owner=owner)
    ensure_dir(home_dir / "docker", owner=owner)
    pops: dict[str, Any] = {}
    for pop in spec.pops:
        folder = ensure_dir(home_dir / public_secrets(pop.pop), owner=owner)
        for name in ("operator.token", "operator.password"):
            write_file(folder / name, (pop.secrets_dir / name).read_bytes(), owner=owner)
        access = public_access(pop_settings(spec, pop).model_dump(mode="json"))
        access["api"]["token_file"] = str(public_secrets(pop.pop) / "operator.token")
        access["mqtt"]["password_file"] = str(public_secrets(pop.pop) / "operator.password")
        pops[pop.pop] = {"id": pop.pop, "state": "starting", **access}
    document = {
        "cluster": spec.cluster,
        "mode": "docker",
        "state": "starting",
        "supervisor": None,
        "pops": pops,
        "wan": None,
    }
    write_json(home_dir / "docker" / "cluster.json", document, owner=owner)
    before = read_json(home_dir / "cluster.json")
    if before is None or before.get("mode") == "docker" or before.get("state") == "stopped":
        write_json(home_dir / "cluster.json", document, owner=owner)


def _plugin() -> Path:
    found = programs.find_plugin()
    if found is None:
        raise MissingProgram(
            f"{programs.PLUGIN_NAME} was not found here.", hint="Give its path in the broker's image: --plugin."
        )
    return found


def _docker_cluster_id(ca_dir: Path) -> str:
    """The id beside the CA: both belong to the cluster, not to a PoP."""
    ensure_dir(ca_dir)
    file = ca_dir / "cluster-id"
    if not file.exists():
        write_file(file, f"c-{secrets.token_hex(6)}", mode=0o644)
    return file.read_text().strip()


def _ports(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _nth(given: list[int] | None, position: int) -> int | None:
    """The port of the PoP at `position`: from a list with one for each, or counted from a single first one."""
    if given is None:
        return None
    if len(given) == 1:
        return given[0] + position
    if position >= len(given):
        raise BadClusterSpec(
            f"{len(given)} ports are given, but there are more PoPs.",
            hint="Give one port for each PoP, or the first only.",
        )
    return given[position]


def _owner(text: str) -> Owner:
    uid, _, gid = text.partition(":")
    return int(uid), int(gid or uid)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgeflow.host.provision",
        description="Write the files of every PoP into folders (volumes). '{pop}' in an option stands for the PoP's id.",
    )
    add = parser.add_argument
    add("--mode", choices=["docker"], default="docker", help="embedded clusters are provisioned by `edgeflow up`")
    add("--pops", default="chicago,la,ny", help="PoP ids, comma-separated")
    add("--cluster", help="cluster id (default: made once and kept beside the CA)")
    add("--owner", type=_owner, default=None, help="uid[:gid] that the files are given to")
    add("--ca-dir", default="/ca")
    add("--config-dir", default="/config/{pop}", help="pop.json and secrets")
    add("--broker-dir", default="/broker/{pop}", help="mosquitto.conf and dynsec.json")
    add("--store-dir", default="/store/{pop}", help="redis.conf and Redis data")
    add("--state-dir", default="/state/{pop}", help="blobs and epochs")
    add("--run-dir", default="/run/ef/{pop}", help="unix sockets")
    add("--wan-dir", default="/wan", help="control document of the link proxy")
    add("--bind", default="0.0.0.0", help="address that services listen on inside their network")
    add("--broker-host", default="{pop}-broker")
    add("--link-host", default="{pop}-data")
    add("--wan-host", default="wan")
    add("--api-port", type=int, default=ports.API_PORT, help="of the first PoP; the next ones follow")
    add("--mqtt-port", type=int, default=ports.MQTT_PORT)
    add("--link-port", type=int, default=ports.LINK_PORT)
    add("--wan-port", type=int, default=ports.WAN_PORT)
    add("--public-host", default=LOOPBACK, help="where clients reach the published ports")
    add(
        "--public-api-port",
        type=_ports,
        help="of the first PoP, or one for each, comma-separated (default: --api-port)",
    )
    add("--public-mqtt-port", type=_ports)
    add(
        "--home-dir",
        type=Path,
        help="the user's $EDGEFLOW_HOME, mounted here: gets cluster.json and the operator's secrets",
    )
    add("--home-owner-of", type=Path, help="what is written to --home-dir is given to the owner of this file or folder")
    add("--socket-volume", default=None, help="name of the volume that holds --run-dir")
    add("--plugin", default=None, help="dynamic-security plugin (default: found here)")
    add("--store-memory-mib", type=int, default=1024)
    add("--settings", default=None, help="JSON merged over every PoP's pop.json")
    return parser


def main(argv: list[str] | None = None) -> int:
    try:
        args = _parser().parse_args(argv)
        spec = docker_spec(args)
        provision(spec)
        if args.home_dir is not None:
            publish_access(spec, args.home_dir, args.home_owner_of)
    except EdgeflowError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    print(f"cluster {spec.cluster}: files of {', '.join(pop.pop for pop in spec.pops)} are in place")
    return 0


if __name__ == "__main__":
    sys.exit(main())
