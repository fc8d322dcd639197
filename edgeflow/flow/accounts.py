"""Broker accounts of functions with a `qos: 0` input.

What it is: one account per function and revision, made over `$CONTROL/dynamic-security/v1` with the admin account when an instance says hello,
and removed when no instance of that revision is left.
What it is not: the accounts of the gateway and of operators (host/brokerconf.py), or the session of an instance (its SDK's).
What must stay true: an account may subscribe to the one input channel, publish on the function's own channels, and nothing else: not outside its
namespace, not on reserved levels, not on `$CONTROL`; the account is bound to its client id (with `contract: mqtt`: its adapter to a prefix), which is secret too; a running instance is not
disturbed by a restart of this process, so passwords and client ids are kept in a file (0600).

Mosquitto: plugins/dynamic-security/README.md (commands and their errors).
"""

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from edgeflow.core.channels import RESERVED_LEVELS, template_filter
from edgeflow.core.routing import FunctionRoute
from edgeflow.errors import Unavailable
from edgeflow.flow.reactor import READ, WRITE, Reactor
from edgeflow.settings import PopSettings

log = structlog.get_logger(__name__)

CONTROL = "$CONTROL/dynamic-security/v1"
RESPONSES = CONTROL + "/response"
ACCOUNT_PREFIX = "function/"
_KEEPALIVE_S = 30
_LONGEST_WAIT_S = 2.0

Key = tuple[str, str, str]
"""Namespace, function, revision."""
Grant = dict[str, str]
"""What an instance connects with: socket, username, password, client_id."""
Command = dict[str, Any]


def function_acls(route: FunctionRoute) -> list[dict[str, Any]]:
    """What an account of this function may do: hear its inputs, publish its outputs."""
    acls = []
    # A program of somebody else's chooses its own filters, within what the manifest says.
    how = "Pattern" if route.contract == "mqtt" else "Literal"
    for source in route.inputs:
        acls += [
            _acl(f"subscribe{how}", source.channel),
            _acl(f"unsubscribe{how}", source.channel),
            _acl("publishClientReceive", source.channel),
        ]
    outputs = [template_filter(channel) for channel in route.publish]
    acls += [_acl("publishClientSend", channel) for channel in outputs]
    if route.contract == "mqtt":
        acls += [
            {**_acl("publishClientReceive", f"{namespace}/{level}/#"), "priority": 1, "allow": False}
            for namespace, first in {tuple(source.channel.split("/")[:2]) for source in route.inputs}
            if first in ("+", "#")
            for level in RESERVED_LEVELS
        ]
    # A template whose first level is open must not reach what belongs to edgeflow (receipts, invocations, dead letters).
    open_ones = {channel.partition("/")[0] for channel in outputs if channel.split("/")[1] in ("+", "#")}
    return acls + [
        {**_acl("publishClientSend", f"{namespace}/{level}/#"), "priority": 1, "allow": False}
        for namespace in sorted(open_ones)
        for level in RESERVED_LEVELS
    ]


def _acl(kind: str, topic: str) -> dict[str, Any]:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}


@dataclass(slots=True)
class _Request:
    """Commands under way; `done` gets the broker's answer to each, in order."""

    commands: list[Command]
    done: Callable[[list[dict[str, Any]]], None]


class Accounts:
    """The accounts of one PoP. Connects to the broker when it is first needed."""

    def __init__(self, reactor: Reactor, settings: PopSettings) -> None:
        self._settings = settings
        self._file = settings.state_dir / "function-accounts.json"
        self._secrets = _load(self._file)
        self.control = ControlSession(reactor, settings)
        """The admin account's session."""
        self.on_refused: Callable[[Key], None] = lambda key: None
        """The broker had refused an account, which was made again."""

    def grant(self, key: Key, route: FunctionRoute, give: Callable[[Grant], None], *, anew: bool = False) -> None:
        """Make sure of the account and hand it to `give`, later. `anew`: the broker refused it as it was, so it is made again.

        Nothing comes while the broker is away; the instance asks again. Raises Unavailable when this PoP is not set up for such functions.
        """
        socket_path = self._settings.function_socket_inside
        if socket_path is None or self._settings.mqtt.admin_password_file is None:
            raise Unavailable(
                f"{key[0]}/{key[1]} has a qos 0 input, but mqtt.function_socket or mqtt.admin_password_file of this PoP is not set",
                hint="Provision the PoP again (`edgeflow down` and `up`), or subscribe with qos 1.",
            )
        username, is_known = _username(key), key in self._secrets and not anew
        if not is_known:
            self._secrets[key] = (secrets.token_urlsafe(32), f"function-{secrets.token_hex(16)}")
            self._save()
        password, client_id = self._secrets[key]
        role = {"rolename": username, "acls": function_acls(route)}
        client = {"username": username, "password": password, "roles": [{"rolename": username}]}
        if route.contract != "mqtt":
            # A program may have several sessions: there the client id is a prefix, which its adapter puts before each (sdk/adapters/relay.py).
            client["clientid"] = client_id
        commands = [] if is_known else _deletion(username)
        commands += [{"command": "createRole", **role}, {"command": "createClient", **client}]

        def made(errors: list[str | None]) -> None:
            real = [error for error in errors[-2:] if error is not None and "already exists" not in error]
            if real:
                log.error("function_account_failed", namespace=key[0], function=key[1], revision=key[2], errors=real)
                return
            log.info("function_account_granted", namespace=key[0], function=key[1], revision=key[2], anew=anew)
            if anew:
                self.on_refused(key)
            give({"socket": str(socket_path), "username": username, "password": password, "client_id": client_id})

        self.control.ask(commands, made)

    def keep(self, wanted: Iterable[Key]) -> None:
        """Remove the accounts of all other functions and revisions."""
        kept = set(wanted)
        for key in set(self._secrets) - kept:
            self._forget(key)

    def close(self) -> None:
        """Disconnect; accounts stay, since instances go on without this process."""
        self.control.close()

    def _forget(self, key: Key) -> None:
        del self._secrets[key]

        def removed(_errors: list[str | None]) -> None:
            # Only now: if this process dies first, the next one finds the account in the file and removes it.
            self._save()
            log.info("function_account_removed", namespace=key[0], function=key[1], revision=key[2])

        self.control.ask(_deletion(_username(key)), removed)

    def _save(self) -> None:
        document = {
            "/".join(key): {"password": password, "client_id": id} for key, (password, id) in self._secrets.items()
        }
        temporary = self._file.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            json.dump(document, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, self._file)


class ControlSession:
    """The admin account's session: commands in their order, each sent again until the broker has answered it."""

    def __init__(self, reactor: Reactor, settings: PopSettings) -> None:
        self._reactor = reactor
        self._settings = settings.mqtt
        self._client: Client | None = None
        self._socket: Any = None
        self._requests: dict[str, _Request] = {}
        self._number = 0
        self._subscribed = False
        self._closed = False
        self._wait_s = 0.05

    def ask(self, commands: list[Command], done: Callable[[list[str | None]], None]) -> None:
        """Have commands carried out together; `done` gets one error or None for each."""
        self.look(commands, lambda answers: done([answer.get("error") for answer in answers]))

    def look(self, commands: list[Command], done: Callable[[list[dict[str, Any]]], None]) -> None:
        """The same; `done` gets the broker's answer to each: {command, data} or {command, error}."""
        self._number += 1
        number = str(self._number)
        self._requests[number] = _Request([{**command, "correlationData": number} for command in commands], done)
        if self._client is None:
            self._open()
        elif self._subscribed:
            self._send(number)

    def close(self) -> None:
        """Disconnect."""
        self._closed = True
        if self._client is not None and self._socket is not None:
            self._client.disconnect()
            self._client.loop_write()

    def _open(self) -> None:
        assert self._settings.admin_password_file is not None
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"admin-{secrets.token_hex(16)}", protocol=MQTTProtocolVersion.MQTTv5,
            transport="unix" if self._settings.socket is not None else "tcp",
        )  # fmt: skip
        client.username_pw_set(self._settings.admin_username, self._settings.admin_password_file.read_text().strip())
        client.on_socket_open = self._socket_opened
        client.on_socket_close = self._socket_closed
        client.on_socket_register_write = lambda *_: self._want_write(READ | WRITE)
        client.on_socket_unregister_write = lambda *_: self._want_write(READ)
        client.on_connect = self._connected
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        self._client = client
        self._reactor.call_every(5.0, self._keep_alive)
        self._connect()

    def _connect(self) -> None:
        if self._closed or self._client is None:
            return
        host = str(self._settings.socket) if self._settings.socket is not None else self._settings.host
        try:
            self._client.connect(host, self._settings.port, keepalive=_KEEPALIVE_S, clean_start=True)
            self._client.loop_write()
        except OSError as error:
            log.debug("broker_unreachable", error=str(error))
            self._retry()

    def _retry(self) -> None:
        self._reactor.call_later(self._wait_s, self._connect)
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)

    def _connected(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            log.error("broker_refused", account=self._settings.admin_username, reason=str(reason))
            return
        client.subscribe(RESPONSES, qos=1)

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("subscribe_refused", filter=RESPONSES, reasons=[str(reason) for reason in reasons])
            return
        self._subscribed = True
        self._wait_s = 0.05
        for number in self._requests:
            self._send(number)

    def _send(self, number: str) -> None:
        assert self._client is not None
        # QoS 0: an answer says more than an acknowledgement, and what has none is sent again after a reconnect.
        self._client.publish(CONTROL, json.dumps({"commands": self._requests[number].commands}).encode(), qos=0)

    def _message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            responses = json.loads(message.payload)["responses"]
            number = responses[0]["correlationData"]
        except (ValueError, KeyError, TypeError, IndexError):
            log.warning("broker_answer_unreadable", payload=bytes(message.payload[:200]))
            return
        # Answers to other administrators are heard here too.
        if (request := self._requests.pop(number, None)) is not None:
            request.done(responses)

    def _disconnected(self, *_arguments: Any) -> None:
        self._subscribed = False
        if not self._closed:
            self._retry()

    def _keep_alive(self) -> None:
        if self._socket is not None and self._client is not None:
            self._client.loop_misc()

    def _socket_opened(self, _client: Client, _data: Any, sock: Any) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._reactor.register(sock, READ, self._on_socket)

    def _socket_closed(self, _client: Client, _data: Any, sock: Any) -> None:
        if self._socket is not None:
            self._reactor.unregister(sock)
            self._socket = None

    def _want_write(self, events: int) -> None:
        if self._socket is not None:
            self._reactor.modify(self._socket, events)

    def _on_socket(self, events: int) -> None:
        assert self._client is not None
        if events & READ and self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return
        if self._socket is not None and self._client.want_write():
            self._client.loop_write()


def _username(key: Key) -> str:
    return ACCOUNT_PREFIX + "/".join(key)


def _deletion(username: str) -> list[Command]:
    return [{"command": "deleteClient", "username": username}, {"command": "deleteRole", "rolename": username}]


def _load(file: Path) -> dict[Key, tuple[str, str]]:
    """(password, client id) of each account."""
    document: Mapping[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        document = json.loads(file.read_text())
    found: dict[Key, tuple[str, str]] = {}
    for name, entry in document.items():
        namespace, function, revision = name.split("/")
        found[namespace, function, revision] = (entry["password"], entry["client_id"])
    return found
