"""Keeps the broker's accounts of the gateway and of operators as they were made.

What it is: every CHECK_S the admin account asks for both and for their roles; what is missing or other than it should be is made again.
What it is not: the accounts of functions: an instance that is refused asks for its own anew (edgeflow.flow.accounts).
What must stay true: nothing is changed that is right; without the admin account's password, or when the broker refuses it, nothing is changed and that is said.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgeflow.core.brokerroles import GATEWAY, OPERATOR, roles
from edgeflow.flow.accounts import ControlSession
from edgeflow.settings import PopSettings
from edgeflow.store.drift import DriftBook

CHECK_S = 5.0
_WATCHED = (GATEWAY, OPERATOR)

Command = dict[str, Any]


class BrokerGuard:
    """The accounts of one broker."""

    def __init__(self, control: ControlSession, settings: PopSettings, drift: DriftBook) -> None:
        self._control = control
        self._drift = drift
        mqtt = settings.mqtt
        self._enabled = mqtt.admin_password_file is not None
        self._files = {GATEWAY: mqtt.password_file, OPERATOR: mqtt.password_file.with_name("operator.password")}
        self._names = {GATEWAY: mqtt.username, OPERATOR: settings.public.mqtt_username}
        self._asked = False

    def check(self) -> None:
        """Look at all of them, later; called every CHECK_S."""
        if not self._enabled or self._asked:
            return
        self._asked = True
        commands: list[Command] = []
        for account in _WATCHED:
            name = self._names[account]
            commands += [{"command": "getRole", "rolename": account}, {"command": "getClient", "username": name}]
        self._control.look(commands, self._judge)

    def _judge(self, answers: list[dict[str, Any]]) -> None:
        self._asked = False
        rights = roles()
        for account, role, client in zip(_WATCHED, answers[::2], answers[1::2], strict=True):
            wrong, commands = self._repair(account, rights[account], role, client)
            if not wrong:
                self._drift.settled("account", account)
                continue
            detail = f"the broker's account {self._names[account]!r} {wrong}"
            if not commands:
                self._drift.found("account", account, detail, healed=False)
                continue
            self._control.ask(commands, partial(self._made, account, detail))

    def _repair(
        self, account: str, rights: list[dict[str, Any]], role: Mapping[str, Any], client: Mapping[str, Any]
    ) -> tuple[str, list[Command]]:
        """What is wrong, and the commands that put it right; none: it cannot be."""
        name = self._names[account]
        commands: list[Command] = []
        found = role.get("data", {}).get("role") if not role.get("error") else None
        wrong = ""
        if found is None:
            wrong = "had lost its role"
            commands.append({"command": "createRole", "rolename": account, "acls": rights})
        elif _plain(found.get("acls", [])) != _plain(rights):
            wrong = "had other rights"
            commands.append({"command": "modifyRole", "rolename": account, "acls": rights})
        known = client.get("data", {}).get("client") if not client.get("error") else None
        if known is None:
            wrong = "was gone"
            try:
                password = self._files[account].read_text().strip()
            except OSError as error:
                return f"is gone, and its password cannot be read ({error.strerror})", []
            commands.append(
                {"command": "createClient", "username": name, "password": password, "roles": [{"rolename": account}]}
            )
        else:
            if known.get("disabled"):
                wrong = wrong or "was disabled"
                commands.append({"command": "enableClient", "username": name})
            if [one.get("rolename") for one in known.get("roles", [])] != [account]:
                wrong = wrong or "had other roles"
                commands.append({"command": "modifyClient", "username": name, "roles": [{"rolename": account}]})
        return wrong, commands

    def _made(self, account: str, detail: str, errors: list[str | None]) -> None:
        left = [error for error in errors if error is not None]
        self._drift.found("account", account, f"{detail}; {left[0]}" if left else detail, healed=not left)


def _plain(acls: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """Rights as a set: their order does not matter, and the broker leaves out what is 0."""
    return {(one.get("acltype"), one.get("topic"), one.get("priority") or 0, bool(one.get("allow"))) for one in acls}
