import socket

from edgeflow.host import ports

NAMES = [("api", "a"), ("api", "b"), ("mqtt", "a"), ("mqtt", "b")]


def test_defaults_are_the_documented_ones():
    assigned, moved = ports.assign(NAMES, {}, free=lambda port: True)
    assert assigned == {("api", "a"): 8101, ("api", "b"): 8102, ("mqtt", "a"): 1891, ("mqtt", "b"): 1892}
    assert moved == []


def test_taken_port_moves_with_a_message_and_leaves_the_others():
    assigned, moved = ports.assign(NAMES, {}, free=lambda port: port != 8101)
    assert assigned["api", "b"] == 8102
    assert assigned["api", "a"] not in (8101, 8102)
    assert [str(move) for move in moved] == [f"a: port 8101 (api) is taken, using {assigned['api', 'a']}"]


def test_ports_of_the_last_start_are_kept():
    assigned, moved = ports.assign(NAMES, {("api", "a"): 9000, ("mqtt", "b"): 9001}, free=lambda port: True)
    assert assigned["api", "a"] == 9000
    assert assigned["mqtt", "b"] == 9001
    assert moved == []


def test_two_never_get_the_same():
    before = {("api", "a"): 8102}  # collides with the default of b
    assigned, _ = ports.assign(NAMES, before, free=lambda port: True)
    assert len(set(assigned.values())) == len(NAMES)


def test_everything_around_taken_still_gives_a_port():
    assigned, moved = ports.assign([("api", "a")], {}, free=lambda port: not 8101 <= port < 8101 + 1000)
    assert assigned["api", "a"] > 0
    assert len(moved) == 1


def test_is_free_sees_a_listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
    assert ports.is_free(port)


def test_any_free_port_is_another_one_each_time_and_none_that_is_listened_on(monkeypatch):
    monkeypatch.setattr(ports, "_numbers", iter(range(300)))
    first = ports.any_free()
    with socket.create_server(("127.0.0.1", ports.ANY_FROM + 100)):
        found = {ports.any_free() for _ in range(200)}
    assert ports.ANY_FROM + 100 not in found and first not in found and len(found) == 200


def test_any_free_port_goes_round(monkeypatch):
    monkeypatch.setattr(ports, "_numbers", iter(range(ports.ANY_TO - ports.ANY_FROM - 1, ports.ANY_TO)))
    monkeypatch.setattr(ports, "is_free", lambda port, host: port == ports.ANY_FROM + 1)
    assert ports.any_free() == ports.ANY_FROM + 1
