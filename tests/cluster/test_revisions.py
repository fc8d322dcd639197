"""Revisions that take over, or do not, on a real PoP."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import NotApplied, Target, apply_file
from edgeflow.cli.main import app
from edgeflow.host.local import LocalCluster

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
Wait = Callable[..., Any]
GOOD = "@function\ndef handle(ctx, words):\n    return words.text() + ' {}'"
CRASHES = "import os\n\n@function\ndef handle(ctx, words):\n    os._exit(3)"


@pytest.fixture
def target(cluster: LocalCluster) -> Target:
    access = cluster.pop("la")
    return Target(access.api_url, access.token)


def write(folder: Path, name: str, handler: str) -> Path:
    (folder / "f").mkdir(exist_ok=True)
    (folder / "f" / "handler.py").write_text(f"from edgeflow import function\n{handler}\n")
    fields = (
        "build: ./f, subscribe: words, publish: out, rollout: {deadline: 10s}, retry: {attempts: 20, backoff: 100ms}"
    )
    (folder / "edgeflow.yaml").write_text(f"namespace: {name}\nfunctions:\n  f: {{{fields}}}\n")
    return folder / "edgeflow.yaml"


def state(client: Operator, name: str) -> dict[str, Any]:
    (one,) = client.functions(name)
    return dict(one)


def answers(client: Operator, name: str, *texts: str) -> list[str]:
    for text in texts:
        client.publish(f"{name}/words", text, subject=text)
    return outputs(client, name, len(texts))


def outputs(client: Operator, name: str, count: int) -> list[str]:
    found: list[str] = []
    for event in client.subscribe(f"{name}/out", from_="start"):
        found.append(event.text())  # type: ignore[union-attr]
        if len(found) == count:
            return found
    raise AssertionError("the stream ended")


def test_what_does_not_start_is_rolled_back_and_what_serves_goes_on(
    cluster: LocalCluster, client: Operator, target: Target, tmp_path: Path, wait_until: Wait
) -> None:
    apply_file(write(tmp_path, "one", GOOD.format("first")), target)
    first = state(client, "one")["revision"]
    with pytest.raises(NotApplied, match=f"revision {first} serves"):
        apply_file(write(tmp_path, "one", "import nothing_like_this"), target)
    assert answers(client, "one", "a") == ["a first"]
    wait_until(lambda: state(client, "one")["state"] == "rolled-back", "it is given up", 30)
    bad = state(client, "one")
    assert bad["live"] == first and "was not ready within 10 s" in bad["reason"]
    assert any("nothing_like_this" in line for line in bad["last_log_lines"])
    cluster.wait_restarted("la", "control", cluster.kill("la", "control"))
    cluster.wait_ready()
    assert state(client, "one")["state"] == "rolled-back"
    records = client.history("one", "f")
    assert [(one["revision"], one["change"], one["state"]) for one in records["items"]] == [
        (bad["revision"], "changed", "rolled-back"), (first, "created", "live"),
    ]  # fmt: skip
    assert records["live"] == first and "@" in records["items"][0]["by"]

    applied = apply_file(write(tmp_path, "one", GOOD.format("third")), target)
    assert state(client, "one")["live"] == applied.functions["f"].revision
    client.publish("one/words", "b", subject="b")
    assert outputs(client, "one", 2) == ["a first", "b third"]

    run = CliRunner().invoke
    shown = run(app, ["history", "one/f", "-o", "json"], env={"EDGEFLOW_HOME": str(cluster.home.root)})
    assert len(json.loads(shown.output)["items"]) == 3, shown.output
    done = run(app, ["rollback", "one/f", "--to", first[:6]], env={"EDGEFLOW_HOME": str(cluster.home.root)})
    assert done.exit_code == 0 and f"revision {first} instead of" in done.output, done.output
    wait_until(lambda: state(client, "one")["live"] == first, "what was asked for serves", 30)
    changed = run(app, ["diff", "-f", str(tmp_path / "edgeflow.yaml")], env={"EDGEFLOW_HOME": str(cluster.home.root)})
    assert "changed one/f" in changed.output and "bundle:" in changed.output, changed.output


def test_what_crashes_after_it_went_live_is_rolled_back_and_its_work_is_done_by_the_one_before(
    client: Operator, target: Target, tmp_path: Path, wait_until: Wait
) -> None:
    apply_file(write(tmp_path, "two", GOOD.format("first")), target)
    first = state(client, "two")["revision"]
    apply_file(write(tmp_path, "two", CRASHES), target)
    assert state(client, "two")["live"] != first
    texts = [str(number) for number in range(20)]
    assert sorted(answers(client, "two", *texts)) == sorted(f"{text} first" for text in texts)
    bad = state(client, "two")
    assert bad["state"] == "rolled-back" and bad["live"] == first and "exited with status 3" in bad["reason"]
    assert list(client.letters("two")) == []
