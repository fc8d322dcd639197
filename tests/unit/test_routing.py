"""Routing tables: which events become work here. A function whose instance hears the broker itself is in the table and gets none."""

from typing import Any

from edgeflow.core.events import make_event
from edgeflow.core.manifest import parse, resolve
from edgeflow.core.routing import InputRoute, RouteTable, compile_routes

DURABLE = "  keep: {image: i, subscribe: ping, publish: kept}\n"
DIRECT = "  echo: {image: i, subscribe: {channel: ping, qos: 0, as: it}, publish: pong}\n"


def table(functions: str) -> RouteTable:
    manifest: dict[str, Any] = resolve(
        parse(f"namespace: fast\nfunctions:\n{functions}", default_pop="la"), {}, applied_ms=1, default_pop="la"
    )
    return compile_routes(manifest, "la")


def no_body(_event: Any) -> bytes:
    raise AssertionError("nothing here looks at the data")


def ping() -> Any:
    return make_event("fast/ping", b"x", id="1", source="test", now_ms=1)


def test_an_event_goes_to_durable_functions_only() -> None:
    both = table(DURABLE + DIRECT)
    assert [directive["f"] for directive in both.route(ping(), 0, no_body)] == ["keep"]
    assert [inbox.partition(":")[0] for inbox in both.inboxes("fast/ping")] == ["keep"]
    echo = next(route for route in both.functions if route.function == "echo")
    assert echo.direct and echo.inputs == (InputRoute("it", "fast/ping"),) and both.find("echo", echo.revision) is echo


def test_direct_functions_survive_the_store() -> None:
    both = table(DURABLE + DIRECT)
    again = RouteTable.from_json(both.version, both.to_json())
    assert again == both and [route.direct for route in again.functions] == [True, False]


def test_a_table_of_durable_functions_is_written_as_before() -> None:
    assert "direct" not in table(DURABLE).to_json()


def test_the_quality_of_the_subscription_is_part_of_the_revision() -> None:
    def revision(subscribe: str) -> str:
        return table(f"  f: {{image: i, subscribe: {subscribe}}}\n").functions[0].revision

    assert revision("ping") == revision("{channel: ping, qos: 1}") == revision("{channel: ping, as: ping}")
    assert revision("ping") != revision("{channel: ping, qos: 0}")
