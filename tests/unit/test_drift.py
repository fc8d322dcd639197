"""What was found other than declared: the book of it, and the broker's accounts."""

from pathlib import Path
from typing import Any

import pytest
from api_fakes import make_settings

from edgeflow.core.brokerroles import GATEWAY, OPERATOR, roles
from edgeflow.flow.guard import BrokerGuard
from edgeflow.store import drift
from edgeflow.store.drift import DriftBook


class Docs:
    def __init__(self) -> None:
        self.all: dict[str, dict[str, Any]] = {}

    def put_doc(self, kind: str, id: str, document: dict[str, Any]) -> None:
        assert kind == "drift"
        self.all[id] = document

    def get_doc(self, kind: str, id: str) -> dict[str, Any] | None:
        return self.all.get(id)

    def docs(self, kind: str) -> dict[str, dict[str, Any]]:
        return self.all

    def delete_doc(self, kind: str, id: str) -> None:
        del self.all[id]


class TestBook:
    def test_found_and_healed(self) -> None:
        docs = Docs()
        book = DriftBook(docs)
        book.found("routes", "a", "one")
        book.found("routes", "a", "two")
        assert docs.all["routes:a"]["count"] == 2 and docs.all["routes:a"]["detail"] == "two"
        assert docs.all["routes:a"]["healed_ms"] is not None

    def test_what_is_wrong_still_is_counted_once_until_it_is_settled(self) -> None:
        docs = Docs()
        book = DriftBook(docs)
        book.settled("account", "x")
        assert not docs.all, "nothing was wrong"
        for _ in range(3):
            book.found("account", "x", "gone", healed=False)
        assert docs.all["account:x"]["count"] == 1 and docs.all["account:x"]["healed_ms"] is None
        book.settled("account", "x")
        healed = docs.all["account:x"]["healed_ms"]
        assert healed is not None
        book.settled("account", "x")
        assert docs.all["account:x"]["healed_ms"] == healed

    def test_their_number_is_bounded_and_what_is_wrong_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drift, "KEPT", 3)
        docs = Docs()
        book = DriftBook(docs)
        book.found("account", "wrong", "gone", healed=False)
        for number in range(6):
            book.found("routes", str(number), "x")
        assert len(docs.all) == 3 and "account:wrong" in docs.all


class Control:
    """The broker: accounts and roles, and what it was told."""

    def __init__(self) -> None:
        self.roles: dict[str, Any] = roles()
        self.clients: dict[str, dict[str, Any]] = {
            name: {"username": name, "roles": [{"rolename": name}]} for name in (GATEWAY, OPERATOR)
        }
        self.told: list[dict[str, Any]] = []

    def look(self, commands: list[dict[str, Any]], done: Any) -> None:
        answers = []
        for one in commands:
            if one["command"] == "getRole":
                found = self.roles.get(one["rolename"])
                answers.append(
                    {"data": {"role": {"acls": found}}} if found is not None else {"error": "Role not found"}
                )
            else:
                client = self.clients.get(one["username"])
                answers.append({"data": {"client": client}} if client is not None else {"error": "Client not found"})
        done(answers)

    def ask(self, commands: list[dict[str, Any]], done: Any) -> None:
        self.told += commands
        for one in commands:
            match one["command"]:
                case "createRole" | "modifyRole":
                    self.roles[one["rolename"]] = one["acls"]
                case "createClient":
                    self.clients[one["username"]] = {"username": one["username"], "roles": one["roles"]}
                case "modifyClient":
                    self.clients[one["username"]]["roles"] = one["roles"]
                case "enableClient":
                    del self.clients[one["username"]]["disabled"]
        done([None] * len(commands))


class TestAccounts:
    @pytest.fixture
    def broker(self) -> Control:
        return Control()

    @pytest.fixture
    def docs(self) -> Docs:
        return Docs()

    @pytest.fixture
    def guard(self, broker: Control, docs: Docs, tmp_path: Path) -> BrokerGuard:
        settings = make_settings(tmp_path)
        for name in ("gateway", "operator", "admin"):
            (tmp_path / f"{name}.password").write_text(f"secret-{name}\n")
        mqtt = settings.mqtt.model_copy(
            update={"password_file": tmp_path / "gateway.password", "admin_password_file": tmp_path / "admin.password"}
        )
        return BrokerGuard(broker, settings.model_copy(update={"mqtt": mqtt}), DriftBook(docs))  # type: ignore[arg-type]

    def test_what_is_right_is_left_alone(self, guard: BrokerGuard, broker: Control, docs: Docs) -> None:
        broker.roles[GATEWAY] = [
            {key: value for key, value in acl.items() if value} for acl in reversed(broker.roles[GATEWAY])
        ]
        guard.check()
        assert not broker.told and not docs.all

    def test_what_is_wrong_is_made_right_once(self, guard: BrokerGuard, broker: Control, docs: Docs) -> None:
        del broker.clients[GATEWAY], broker.roles[OPERATOR]
        guard.check()
        assert {
            "command": "createClient",
            "username": GATEWAY,
            "password": "secret-gateway",
            "roles": [{"rolename": GATEWAY}],
        } in broker.told
        assert docs.all["account:gateway"]["healed_ms"] and docs.all["account:operator"]["healed_ms"]
        broker.told.clear()
        guard.check()
        assert not broker.told
        broker.clients[OPERATOR] |= {"disabled": True, "roles": []}
        broker.roles[GATEWAY] = broker.roles[GATEWAY][1:]
        guard.check()
        assert sorted(one["command"] for one in broker.told) == ["enableClient", "modifyClient", "modifyRole"]
        assert broker.roles == roles() and docs.all["account:gateway"]["count"] == 2

    def test_what_cannot_be_made_right_is_said(
        self, guard: BrokerGuard, broker: Control, docs: Docs, tmp_path: Path
    ) -> None:
        (tmp_path / "operator.password").unlink()
        del broker.clients[OPERATOR]
        guard.check()
        assert (
            docs.all["account:operator"]["healed_ms"] is None
            and "cannot be read" in docs.all["account:operator"]["detail"]
        )
        assert not broker.told
