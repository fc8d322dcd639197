"""docs/links.md names every message, field and state that there is."""

import re
from dataclasses import fields
from pathlib import Path

from edgeflow.cluster import calls, desk, link, linkproto, manager, relays, session, snapshots, wants
from edgeflow.cluster.linkproto import KINDS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "links.md").read_text()


def test_every_message_is_documented_with_its_fields() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)` \| ((?:`\w+`(?:, )?)+) \|", TEXT, re.M))
    documented = {name: re.findall(r"`(\w+)`", columns) for name, columns in rows.items()}
    assert documented == {name: [field.name for field in fields(kind)] for name, kind in KINDS.items()}


def test_the_figures_are_those_of_the_code() -> None:
    kib = 1024
    assert f"Version: {linkproto.VERSION}" in TEXT
    assert f"At most {linkproto.WINDOW_BYTES // kib // kib} MiB of payload" in TEXT
    assert f"chunks stop at {linkproto.CHUNK_WINDOW_BYTES // kib // kib} MiB" in TEXT
    assert f"at most {linkproto.BATCH_ENTRIES}, about {linkproto.BATCH_BYTES // kib} KiB" in TEXT
    assert f"at most {linkproto.CHUNK_BYTES // kib} KiB. Chunks" in TEXT
    assert f"at most {linkproto.LIST_ITEMS} a message" in TEXT
    assert f"says nothing for {session.SILENCE_S:g} s" in TEXT
    assert f"after {link.BACKOFF_MIN_S:g} s, doubling to {link.BACKOFF_MAX_S:g} s" in TEXT
    assert f"nothing of it for {wants.STALL_S:g} s" in TEXT
    assert f"At most {calls.OPEN_CALLS} open calls".lower() in TEXT
    assert f"at most {linkproto.CALL_BYTES // kib // kib} MiB. |" in TEXT
    assert f"Every {manager.BEAT_S * 1000:g} ms each side asks" in TEXT
    assert f"not been heard for {link.HEARD_S:g} s is gone round: {relays.RELAY_S:g} s later" in TEXT
    assert f"at most {snapshots.LANES} a message. |" in TEXT
    assert f"again every {wants.RETRY_S:g} s" in TEXT


def test_every_field_of_link_state_is_documented() -> None:
    source = Path(link.__file__).read_text()
    body = source[source.index("def document") : source.index("# What connections report")]
    for name in re.findall(r'"(\w+)":', body):
        assert f"| `{name}` |" in TEXT, name


def test_every_field_of_lag_is_documented() -> None:
    source = Path(manager.__file__).read_text()
    body = source[source.index("def _lag") : source.index("def _relay")]
    for name in re.findall(r'"(\w+)":', body):
        assert f"`{name}`" in TEXT, name


def test_every_question_is_documented() -> None:
    source = Path(desk.__file__).read_text()
    questions = re.search(r"_questions.*?= \{(.*?)\}", source, re.S)
    calls_there = re.search(r"_calls: .*?= \{(.*?)\}", source, re.S)
    assert questions and calls_there
    for name in re.findall(r'"(\w+)":', questions[1]):
        assert f"`{name}`" in TEXT, name
    for name in re.findall(r'"(\w+)":', calls_there[1]):
        assert f"| `{name}` |" in TEXT, name
