"""Configuration of one PoP's Mosquitto: its listeners, limits and accounts.

What it is: two files, `mosquitto.conf` and `dynsec.json`, made from parameters.
What it is not: the broker's state. That is a cache of what the PoP's log holds (`persistence false`).
What must stay true: nobody connects without an account; whatever is not granted is denied, delivery to existing subscriptions included; no account
of a PoP's namespaces reaches `$CONTROL`.
"""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeflow.core.brokerroles import ACCESS, roles
from edgeflow.core.brokerroles import ADMIN as ADMIN
from edgeflow.core.brokerroles import GATEWAY as GATEWAY
from edgeflow.core.brokerroles import OPERATOR as OPERATOR

HASH_ITERATIONS = 1000
"""PBKDF2 rounds. The secrets have 256 random bits, so more rounds would only hold up the single-threaded broker at each connect."""


@dataclass(frozen=True)
class BrokerParams:
    """What differs between PoPs and modes. Paths are as the broker process sees them."""

    bind: str
    """Address of the TCP listener."""
    port: int
    """Port of the TCP listener."""
    socket: Path
    """Unix socket for the gateway."""
    function_socket: Path
    """Unix socket for functions with a `qos: 0` input; alone in its folder, which is all that their containers see."""
    dynsec_file: Path
    """Accounts and rights; the broker rewrites it when they change."""
    plugin: Path
    """The dynamic-security plugin."""
    user: str | None = None
    """Account the broker drops to when started as root; None = leave it to Mosquitto."""
    max_packet_bytes: int = 33 * 1024 * 1024
    """Above it the broker refuses by itself. Twice the largest event, so that one that is somewhat too large reaches the gateway, which says why."""
    memory_bytes: int = 512 * 1024 * 1024
    """The broker's memory: the only limit that makes it refuse instead of dropping silently."""


def mosquitto_conf(params: BrokerParams) -> str:
    """The text of mosquitto.conf."""
    lines = [
        "# Written by edgeflow at each start; changes are lost.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"plugin {params.plugin}",
        f"plugin_opt_config_file {params.dynsec_file}",
        "",
        "# The log in Redis holds what must not be lost; the broker keeps nothing on disk.",
        "persistence false",
        "set_tcp_nodelay true",
        "max_inflight_messages 256",
        "max_queued_messages 1000000",
        "max_queued_bytes 0",
        f"memory_limit {params.memory_bytes}",
        f"max_packet_size {params.max_packet_bytes}",
        "",
        "log_dest stderr",
        "log_timestamp true",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",  # they name client ids, and the gateway's are secrets
    ]
    if params.user is not None:
        lines.append(f"user {params.user}")
    lines += [
        "",
        f"listener {params.port} {params.bind}",
        "",
        f"listener 0 {params.socket}",
        "",
        f"listener 0 {params.function_socket}",
        "",
    ]
    return "\n".join(lines)


def dynsec(passwords: dict[str, str]) -> str:
    """The text of dynsec.json for the accounts admin, gateway and operator, whose passwords (by account name) are given."""
    rights = roles()
    document = {
        "defaultACLAccess": ACCESS,
        "clients": [_client(account, passwords[account]) for account in rights],
        "groups": [],
        "roles": [{"rolename": account, "acls": acls} for account, acls in rights.items()],
    }
    return json.dumps(document, indent=2) + "\n"


def _client(account: str, password: str) -> dict[str, Any]:
    salt = os.urandom(12)  # the plugin takes exactly 12 bytes
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, HASH_ITERATIONS, 64)
    return {
        "username": account,
        "password": base64.b64encode(digest).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": HASH_ITERATIONS,
        "roles": [{"rolename": account}],
    }
