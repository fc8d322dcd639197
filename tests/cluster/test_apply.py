"""From a manifest to running functions and back, on a real cluster of two PoPs."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeflow.cli.apply import NotApplied, PopApi, Target, apply_file
from edgeflow.cli.main import app
from edgeflow.errors import BadManifest
from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
Wait = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(["chicago", "la"]) as running:
        yield running


@pytest.fixture
def target(cluster: LocalCluster) -> Target:
    access = cluster.pop("chicago")
    return Target(access.api_url, access.token)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    access = cluster.pop("chicago")
    with Client(access.api_url, access.token) as one:
        yield one


def write(folder: Path, namespace: str, functions: Mapping[str, tuple[str, str]]) -> Path:
    """A manifest whose functions are {name: (fields, handler)}."""
    lines = [f"namespace: {namespace}", "functions:"]
    for name, (fields, handler) in functions.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "handler.py").write_text(f"from edgeflow import function\n\n{handler}\n")
        lines.append(f"  {name}: {{build: ./{name}, {fields}}}")
    (folder / "edgeflow.yaml").write_text("\n".join(lines) + "\n")
    return folder / "edgeflow.yaml"


UPPER = "@function\ndef handle(ctx, words):\n    return words.text().upper()"
AT_LA = "subscribe: words, publish: upper, place: {pops: [la]}"


def answers(client: Client, namespace: str, text: str, channel: str = "upper") -> str:
    """What comes out on `channel` when `text` goes in on `words`."""
    client.publish(f"{namespace}/words", text, subject=text)
    for event in client.subscribe(f"{namespace}/{channel}", from_="start"):
        if getattr(event, "subject", None) == text:
            return str(event.text())  # type: ignore[union-attr]
    raise AssertionError("the stream ended")


def runs(cluster: LocalCluster, pop: str, namespace: str) -> list[dict[str, Any]]:
    """Run files of a namespace's instances."""
    files = (cluster.home.pop_dir(pop) / "state" / "instances").glob("*.json")
    documents = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # its instance has just been removed
            documents.append(json.loads(file.read_text()))
    return [one for one in documents if one["namespace"] == namespace and one["pid"]]


def test_functions_run_where_they_are_placed_and_change_when_applied_again(
    cluster: LocalCluster, target: Target, client: Client, tmp_path: Path, wait_until: Wait
) -> None:
    file = write(tmp_path, "one", {"up": (AT_LA, UPPER)})
    assert apply_file(file, target).status == "created"
    assert answers(client, "one", "hello") == "HELLO"
    (first,) = runs(cluster, "la", "one")
    assert apply_file(file, target).status == "unchanged"

    write(tmp_path, "one", {"up": (AT_LA, UPPER.replace("upper()", "title()"))})
    applied = apply_file(file, target)
    assert applied.status == "updated" and applied.functions["up"].state == "ready"
    assert answers(client, "one", "another word") == "Another Word"
    wait_until(
        lambda: [one["revision"] for one in runs(cluster, "la", "one")] == [applied.functions["up"].revision],
        "the old one leaves",
        20,
    )
    assert first["pid"] not in [one["pid"] for one in runs(cluster, "la", "one")]


def test_instances_survive_the_control_process_and_are_replaced_when_killed(
    cluster: LocalCluster, target: Target, client: Client, tmp_path: Path, wait_until: Wait
) -> None:
    apply_file(write(tmp_path, "two", {"up": (AT_LA, UPPER)}), target)
    (before,) = runs(cluster, "la", "two")
    cluster.wait_restarted("la", "control", cluster.kill("la", "control"))
    cluster.wait_ready()
    time.sleep(1.5)  # longer than a round: adoption is that nothing happens
    assert [one["pid"] for one in runs(cluster, "la", "two")] == [before["pid"]]
    assert answers(client, "two", "still") == "STILL"
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(
        lambda: [one["pid"] for one in runs(cluster, "la", "two")] not in ([], [before["pid"]]), "another one runs", 20
    )
    assert answers(client, "two", "again") == "AGAIN"


@pytest.mark.usefixtures("soon_believed")
def test_a_handler_that_cannot_be_loaded_is_reported_with_its_last_lines(target: Target, tmp_path: Path) -> None:
    file = write(tmp_path, "three", {"bad": (AT_LA, "import nothing_like_this")})
    with pytest.raises(NotApplied) as caught:
        apply_file(file, target, timeout_s=60)
    assert "three/bad at la is failing" in caught.value.message and "nothing_like_this" in caught.value.message


@pytest.mark.usefixtures("soon_believed")
def test_requirements_that_cannot_be_had_are_reported(target: Target, tmp_path: Path) -> None:
    file = write(tmp_path, "four", {"bad": (AT_LA, UPPER)})
    (tmp_path / "bad" / "requirements.txt").write_text("not a requirement\n")
    with pytest.raises(
        NotApplied, match="four/bad at la is failing: cannot install the requirements: ERROR: Invalid requirement"
    ):
        apply_file(file, target, timeout_s=60)


def test_a_removed_manifest_ends_its_functions(
    cluster: LocalCluster, target: Target, client: Client, tmp_path: Path, wait_until: Wait
) -> None:
    apply_file(write(tmp_path, "five", {"up": (AT_LA, UPPER)}), target)
    with PopApi(target) as api:
        assert api._http.delete("/v1/functions/five").status_code == 204
        wait_until(lambda: runs(cluster, "la", "five") == [], "its instance leaves", 20)
        wait_until(lambda: api.state("five", "up", "la") is None, "its state is forgotten", 10)


def test_a_wrong_manifest_changes_nothing(target: Target, tmp_path: Path) -> None:
    file = write(
        tmp_path, "six", {"up": ("subscribe: one/words, place: {pops: [paris]}, scale: {concurrency: 3}", UPPER)}
    )
    with pytest.raises(BadManifest) as caught:
        apply_file(file, target)
    for words in (
        "'one' is another namespace" if "one" in _namespaces(target) else "paris",
        "PoP 'paris' does not exist",
        "scale.concurrency: not available",
    ):
        assert words in caught.value.message
    assert "six" not in _namespaces(target)


def _namespaces(target: Target) -> list[str]:
    with PopApi(target) as api:
        return api.namespaces()


def test_the_command_prints_json_and_progress_apart(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFLOW_HOME", str(cluster.home.root))
    file = write(tmp_path, "seven", {"up": ("subscribe: words", UPPER)})
    done = CliRunner().invoke(app, ["apply", "-f", str(file), "--pop", "la", "-o", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["functions"]["up"]["state"] == "ready" and document["functions"]["up"]["pop"] == "la"
    assert "up at la: ready" in done.stderr
    failed = CliRunner().invoke(app, ["apply", "-f", str(tmp_path / "none.yaml")])
    assert failed.exit_code == 1 and "there is no file" in failed.stderr
    built = CliRunner().invoke(app, ["build", "-f", str(file), "-o", "json"])
    assert built.exit_code == 0 and len(json.loads(built.stdout)["up"]["bundle"]) == 64
