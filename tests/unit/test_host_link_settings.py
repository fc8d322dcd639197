import pytest

from edgeflow.host import wan
from edgeflow.host.errors import BadClusterSpec


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "wan.json"
    wan.save_links(
        file, [wan.Link("a", "b", "127.0.0.1", 1, "127.0.0.1", 2), wan.Link("b", "c", "127.0.0.1", 3, "127.0.0.1", 4)]
    )
    return file


def test_change_one_link_in_either_order(config):
    wan.change_link(config, "b", "a", delay_ms=100)
    wan.change_link(config, "a", "b", cut=True)
    first, second = wan.load_links(config)
    assert (first.delay_ms, first.cut) == (100.0, True)
    assert (second.delay_ms, second.cut) == (0.0, False)


def test_unknown_link_is_refused_with_the_known_ones(config):
    with pytest.raises(BadClusterSpec) as refused:
        wan.change_link(config, "a", "c", delay_ms=1)
    assert "a,b" in refused.value.hint


@pytest.mark.parametrize("delay_ms", [-1, 60_001, float("nan")])
def test_impossible_delay_is_refused(config, delay_ms):
    with pytest.raises(BadClusterSpec):
        wan.change_link(config, "a", "b", delay_ms=delay_ms)


def test_command_line_changes_and_leaves(config, capsys):
    assert wan.main(["--config", str(config), "--between", "a,b", "--delay-ms", "7", "--cut"]) == 0
    assert wan.load_links(config)[0].delay_ms == 7
    assert wan.load_links(config)[0].cut
    assert wan.main(["--config", str(config), "--between", "a,x", "--no-cut"]) == 1
    assert "no link" in capsys.readouterr().err
