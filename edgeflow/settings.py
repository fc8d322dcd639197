"""Settings of one PoP: nested, typed, one docstring per field with unit, default and reason.

What it is: the document `pop.json` that the provisioning writes and both agent processes read.
What it is not: the manifest of an application, or secrets (only the paths of their files).
What must stay true: every field is documented in docs/settings.md; a field that is not known is refused.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BROKER_FOLDER = "/run/edgeflow-broker"
"""Where the container of a function with a `qos: 0` input finds the folder of `mqtt.function_socket`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Section):
    redis_socket: Path
    """Unix socket of this PoP's Redis. Redis listens nowhere else."""
    retry_s: float = 60.0
    """Seconds a call waits for Redis to come back before it gives up (the data process never gives up)."""


class MqttSettings(_Section):
    socket: Path | None = None
    """Unix socket of the broker for the gateway; None = use host and port."""
    host: str = "127.0.0.1"
    """Host of the broker's TCP listener."""
    port: int = 1883
    """Port of the broker's TCP listener."""
    username: str = "gateway"
    """Broker account of the gateway: all namespaces, no control topics."""
    password_file: Path
    """File (0600) with the gateway's password."""
    function_socket: Path | None = None
    """Unix socket of the broker for functions with a `qos: 0` input, alone in its folder, which their containers see; None = they cannot run here."""
    admin_username: str = "admin"
    """Broker account that makes the accounts of those functions: control topics only."""
    admin_password_file: Path | None = None
    """File (0600) with its password; None = functions with a `qos: 0` input cannot run here."""
    receive_maximum: int = 256
    """Messages the broker may have under way to the gateway; at most 512, half of the redelivery ring."""
    rewind_events: int = 1000
    """How many released events the publisher sends again after the broker lost its state."""


class Peer(_Section):
    host: str
    """Host that this PoP dials."""
    port: int
    """Port that this PoP dials."""


class LinkSettings(_Section):
    host: str = "127.0.0.1"
    """Address that the link listener binds."""
    port: int
    """Port that the link listener binds."""
    ca: Path
    """PEM of the cluster's CA: whom to trust."""
    cert: Path
    """PEM of this PoP's certificate; its common name is the PoP id."""
    key: Path
    """PEM of this PoP's private key (0600)."""
    ca_key: Path | None = None
    """PEM of the CA's private key (0600); None = this PoP makes no tokens for new PoPs. Those have it that were there from the beginning."""
    peers: dict[str, Peer] = Field(default_factory=dict)
    """The other PoPs by id, as they were at the start of this PoP; who joins later is known by its member record. Of a pair, the smaller id dials."""
    advertise: Peer | None = None
    """Where other PoPs reach this one's listener; None = `host` and `port`."""


class LocationSettings(_Section):
    lat: float = Field(ge=-90, le=90)
    """Latitude in degrees."""
    lon: float = Field(ge=-180, le=180)
    """Longitude in degrees."""
    name: str = ""
    """What people call the place."""


class MembershipSettings(_Section):
    suspect_ms: int = Field(default=2000, gt=0)
    """A PoP of which nothing was heard for this long (ms) is `suspect`. It is asked four times a second."""
    down_ms: int = Field(default=6000, gt=0)
    """After this long (ms) it is `down`, and what it owned may be taken over: longer than a restart of its processes takes, and than most hiccups of a network."""
    admitted: bool = False
    """This PoP came with a token (`edgeflow pops join`): others have recorded it, and it waits for that record before it says anything of itself."""
    location: LocationSettings | None = None
    """Where this PoP is; None = unknown. Clients that say where they are are ranked by it."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Free words about this PoP, for people and for programs that choose among PoPs."""
    cost: float = Field(default=0.0, ge=0)
    """What the use of this PoP costs, in units of one's own: weighs when clients choose among PoPs."""


class ApiSettings(_Section):
    host: str = "127.0.0.1"
    """Address that the HTTP API binds."""
    port: int
    """Port that the HTTP API binds."""
    token_file: Path
    """File (0600) with the operator's bearer token."""
    shed_load: float = Field(default=0.9, ge=0)
    """Load (1 = all that this PoP can do) from which on clients are asked to go to another PoP that has room; 0 = never."""
    refuse_load: float = Field(default=1.0, ge=0)
    """Load from which on, while clients are asked to go, new event streams are refused with the name of that PoP. Above 1 is reached only by refusing events."""


class PublicSettings(_Section):
    """Where a client on the user's machine finds this PoP; shown by `status` and `env`."""

    api_url: str
    """Base URL of the HTTP API."""
    api_token_file: Path
    """The operator's bearer token, as a path on the user's machine."""
    mqtt_host: str
    """Host of the broker."""
    mqtt_port: int
    """Port of the broker."""
    mqtt_ws_url: str
    """URL of MQTT over WebSockets."""
    mqtt_username: str = "operator"
    """Broker account for all namespaces."""
    mqtt_password_file: Path
    """Its password, as a path on the user's machine."""


class RunnerSettings(_Section):
    venvs_dir: Path | None = None
    """Embedded mode: where the virtual environments of functions live, one per distinct requirements file."""
    python: Path | None = None
    """Embedded mode: interpreter that makes those environments; None = the agent's own."""
    image_prefix: str = "edgeflow"
    """Docker mode: first part of the names of images that are built here."""
    socket_volume: str | None = None
    """Docker mode: name of the volume that holds run_dir; each instance gets one folder of it only. None = the agent runs on the engine's machine itself, which sees run_dir."""
    secrets_key_file: Path | None = None
    """File (0600) with the cluster's key for secrets, the same at every PoP; None = this PoP neither takes nor reads secrets."""
    dev_dir: Path | None = None
    """Set by `edgeflow dev`: the folder beside the manifest where failed invocations are kept; functions may run from folders that are being edited. None = they may not."""
    unused_hours: float = Field(default=168.0, gt=0)
    """Hours (a week) for which images, pieces of them, bundles and environments are kept that no manifest and no kept revision refers to."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs that all instances of the PoP together may be allowed (`limits.cpus`, paused ones not counted); None = 16 times the machine's, since few reach
    their limit at the same time. What does not fit waits."""
    memory_bytes: int | None = Field(default=None, gt=0)
    """Memory (bytes) that all instances of the PoP together may be allowed (`limits.memory`); None = four times the machine's, for the same reason. What does not fit
    waits."""
    launcher: Path = Path("/opt/edgeflow/launch")
    """Docker mode: the static program that starts the programs of `contract: stdio` inside their containers; the agent's image has it."""
    start_deadline_s: float = 120.0
    """Seconds an instance may take from start to ready before it is reported as failing and replaced."""


class Limits(_Section):
    inline_bytes: int = 4096
    """Bodies up to this size (bytes) are kept inside the log entry; larger ones become blobs."""
    redis_blob_bytes: int = 256 * 1024
    """Blobs below this size (bytes) live in Redis, larger ones in a file."""
    event_bytes: int = 16 * 1024 * 1024
    """Largest body (bytes) of one event."""
    value_bytes: int = 256 * 1024 * 1024
    """Largest value (bytes) in the EKV."""
    image_bytes: int = 8 * 1024 * 1024 * 1024
    """Largest archive (bytes) of a container image, and most uncompressed bytes of its layers."""
    set_elements: int = 10_000
    """Most elements that a set in the EKV takes."""
    map_fields: int = 10_000
    """Most fields that a map in the EKV takes."""
    skew_ms: int = 500
    """How far (ms) the version of a peer's write may be ahead of this PoP's clock; what is further ahead is merged when its time has come."""
    cache_bytes: int = 1024 * 1024 * 1024
    """Bytes of bodies that a PoP keeps of each namespace though policies place them elsewhere; the least recently used go first."""
    mqtt_inline_bytes: int = 1024 * 1024
    """Largest body (bytes) that plain MQTT subscribers get as the payload; above it they get a reference."""
    attributes: int = 64
    """Most extension attributes of one event."""
    attribute_bytes: int = 4096
    """Longest value (bytes) of one attribute."""
    outputs: int = 2000
    """Most events one commit may carry."""
    commit_bytes: int = 16 * 1024 * 1024
    """Most inline bytes one commit may carry."""
    hops: int = 16
    """Longest chain of functions behind one client event; stops cycles."""
    disk_free_bytes: int = 128 * 1024 * 1024
    """Free disk (bytes) below which a PoP takes no new data, since Redis ends when it cannot write."""
    inbox_pending: int = 100_000
    """Invocations that one inbox may hold before its channels refuse, unless the manifest's `channels:` says otherwise."""
    dead_letters: int = 10_000
    """Most dead letters that a namespace keeps at a PoP; the oldest go first, and are counted."""
    dead_letter_ms: int = 7 * 24 * 3_600_000
    """How long (ms) dead letters are kept."""
    gate_timeout_ms: int = 30_000
    """How long (ms) the gate waits for data before it reports a gap."""
    id_window_ms: int = 600_000
    """How long (ms) a client's own event id is remembered for deduplication."""
    log_bytes: int = 1024 * 1024 * 1024
    """Memory (bytes) that the logs of one namespace may take; beyond it the oldest entries go, and a peer that needs them gets a snapshot."""
    retention_ms: int = 3_600_000
    """How long (ms) log entries and released events are kept at least."""


class PopSettings(_Section):
    pop: str
    """Id of this PoP, [a-z0-9-]+."""
    cluster: str
    """Id of the cluster; links refuse another one."""
    mode: Literal["embedded", "docker"]
    """How instances run: local processes, or containers."""
    state_dir: Path
    """Blob files, the epoch file, unpacked bundles. Survives restarts."""
    run_dir: Path
    """Unix sockets. Short (a socket's path has at most 107 bytes), emptied at start."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    store: StoreSettings
    mqtt: MqttSettings
    link: LinkSettings
    api: ApiSettings
    public: PublicSettings
    membership: MembershipSettings = Field(default_factory=MembershipSettings)
    runner: RunnerSettings = Field(default_factory=RunnerSettings)
    limits: Limits = Field(default_factory=Limits)

    @property
    def function_socket_inside(self) -> Path | None:
        """`mqtt.function_socket` as an instance sees it."""
        path = self.mqtt.function_socket
        return path if path is None or self.mode == "embedded" else Path(BROKER_FOLDER) / path.name

    @classmethod
    def load(cls, path: Path) -> "PopSettings":
        """Read and check the JSON file at `path`. Raises pydantic.ValidationError naming each wrong field."""
        return cls.model_validate(json.loads(path.read_text()))
