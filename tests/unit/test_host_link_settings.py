import contextlib
import json
import threading
import time

import pytest

from edgeflow.host import linkfile, wan
from edgeflow.host.errors import BadClusterSpec, LinkNotApplied


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "wan.json"
    linkfile.save_links(
        file,
        [
            linkfile.Link("a", "b", "127.0.0.1", 1, "127.0.0.1", 2),
            linkfile.Link("b", "c", "127.0.0.1", 3, "127.0.0.1", 4),
        ],
    )
    return file


def test_change_one_link_in_either_order(config):
    linkfile.change_link(config, "b", "a", delay_ms=100)
    linkfile.change_link(config, "a", "b", cut=True)
    first, second = linkfile.load_links(config).links
    assert (first.delay_ms, first.cut) == (100.0, True)
    assert (second.delay_ms, second.cut) == (0.0, False)


def test_unknown_link_is_refused_with_the_known_ones(config):
    with pytest.raises(BadClusterSpec) as refused:
        linkfile.change_link(config, "a", "c", delay_ms=1)
    assert "a,b" in refused.value.hint


@pytest.mark.parametrize("delay_ms", [-1, 60_001, float("nan")])
def test_impossible_delay_is_refused(config, delay_ms):
    with pytest.raises(BadClusterSpec):
        linkfile.change_link(config, "a", "b", delay_ms=delay_ms)


def test_command_line_changes_and_leaves(config, capsys):
    assert wan.main(["--config", str(config), "--between", "a,b", "--delay-ms", "7", "--cut"]) == 0
    assert linkfile.load_links(config).links[0].delay_ms == 7
    assert linkfile.load_links(config).links[0].cut
    assert wan.main(["--config", str(config), "--between", "a,x", "--no-cut"]) == 1
    assert "no link" in capsys.readouterr().err


def test_a_change_returns_when_the_proxy_has_it(config):
    proxy = linkfile.Applied(config)
    told = []

    def serve():
        deadline_s = time.monotonic() + 10
        while (control := linkfile.load_links(config)).links[0].delay_ms != 5:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        told.append(control.version)
        proxy.tell(control.version)

    serving = threading.Thread(target=serve)
    serving.start()
    linkfile.change_link(config, "a", "b", delay_ms=5)
    assert told == [linkfile.load_links(config).version]
    serving.join()
    proxy.close()
    linkfile.change_link(config, "a", "b", delay_ms=6)  # nobody serves: nobody is waited for


def test_a_proxy_that_does_not_take_a_change_is_named(config, monkeypatch):
    monkeypatch.setattr(linkfile, "APPLIED_S", 0.05)
    with contextlib.closing(linkfile.Applied(config)) as proxy:
        with pytest.raises(LinkNotApplied):
            linkfile.change_link(config, "a", "b", delay_ms=5)
        assert linkfile.load_links(config).links[0].delay_ms == 5  # it holds when the proxy goes on
        proxy.tell(linkfile.load_links(config).version)
        with pytest.raises(LinkNotApplied):
            linkfile.save_links(config, [])  # also a document that was made anew is a later one


def test_changes_at_the_same_time_all_hold(config):
    pairs = [("a", "b"), ("b", "c")]
    threads = [
        threading.Thread(target=lambda pair=pair: [linkfile.change_link(config, *pair, delay_ms=n) for n in range(40)])
        for pair in pairs
    ]
    version = linkfile.load_links(config).version
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = linkfile.load_links(config)
    assert [link.delay_ms for link in found.links] == [39, 39]
    assert found.version > version


def test_one_proxy_serves_a_document(config):
    with contextlib.closing(linkfile.Applied(config)), pytest.raises(BlockingIOError):
        linkfile.Applied(config)
    linkfile.Applied(config).close()


def test_one_direction_changes_and_the_other_stays(config):
    linkfile.change_link(config, "a", "b", delay_ms=10)
    linkfile.change_link(config, "b", "a", cut=True, kbit_s=800, one_way=True)
    link = linkfile.load_links(config).links[0]
    assert link.line("a") == linkfile.Line(10, False, 0)
    assert link.line("b") == linkfile.Line(10, True, 800)
    linkfile.change_link(config, "a", "b", cut=False, kbit_s=0)
    link = linkfile.load_links(config).links[0]
    assert link.back is None and link.line("b") == link.line("a") == linkfile.Line(10, False, 0)


def test_what_was_carried_and_the_links_can_be_told_to_somebody_else(config, capsys):
    assert linkfile.carried_bytes(config) == {}
    linkfile.save_carried(config, {("a", "b"): 7, ("b", "a"): 9, ("b", "c"): 1})
    linkfile.change_link(config, "b", "a", cut=True, one_way=True)
    assert wan.main(["--config", str(config), "--show"]) == 0
    links, carried = linkfile.from_description(json.loads(capsys.readouterr().out))
    assert links == linkfile.load_links(config).links
    assert carried == {("a", "b"): 7, ("b", "a"): 9, ("b", "c"): 1} == linkfile.carried_bytes(config)
