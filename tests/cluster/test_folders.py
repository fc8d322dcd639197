"""A folder as one set on two real PoPs: applied, compared, pruned, written down, and taken by one PoP while the other is away."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from edgeflow.cli.admin import Operator
from edgeflow.cli.main import app
from edgeflow.host.local import LocalCluster

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(240)]
Wait = Callable[..., Any]
HANDLER = "from edgeflow import function\n\n@function\ndef handle(ctx, words):\n    return words.text() + '{}'\n"


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[LocalCluster]:
    with LocalCluster(["la", "ny"]) as running:
        yield running


@pytest.fixture
def run(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("EDGEFLOW_HOME", str(cluster.home.root))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    return run


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Operator]:
    access = cluster.pop("la")
    with Operator(access.api_url, access.token) as one:
        yield one


def application(folder: Path, name: str, pop: str = "la", more: str = "", text: str = "!") -> None:
    (folder / name / "f").mkdir(parents=True, exist_ok=True)
    (folder / name / "f" / "handler.py").write_text(HANDLER.format(text))
    (folder / name / "f" / "config.yaml").write_text("not: a manifest\n")
    fields = f"build: ./f, subscribe: words, publish: out, place: {{pops: [{pop}]}}"
    (folder / name / "edgeflow.yaml").write_text(f"namespace: {name}\nfunctions:\n  f: {{{fields}}}\n{more}")


def test_a_folder_is_applied_as_it_is_and_pruned_as_it_was(
    run: Callable[..., Result], client: Operator, tmp_path: Path, wait_until: Wait
) -> None:
    folder = tmp_path / "apps"
    application(folder, "one", more="---\nnamespace: one\nquota: {events_per_s: 500}\n")
    application(folder, "two", pop="ny")
    (folder / "policies.yaml").write_text("namespace: two\npolicies:\n  - {prefix: models/, place: lazy}\n")
    would = run("diff", "-f", folder, "-o", "json")
    assert {step["change"] for step in json.loads(would.stdout)["steps"]} == {"created"} and client.manifest(
        "one"
    ) is None
    done = run("apply", "-f", folder, "-o", "json")
    assert done.exit_code == 0, done.output
    assert client.quota("one") and client.policies("two")["rules"][0]["place"] == "lazy"
    again = json.loads(run("apply", "-f", folder, "-o", "json").stdout)
    assert {step["change"] for step in again["steps"]} == {"unchanged"}

    written = run("get", "manifests", "-o", "yaml")
    assert written.exit_code == 0, written.output
    (tmp_path / "written.yaml").write_text(written.stdout)
    assert len(list(yaml.safe_load_all(written.stdout))) == 4
    same = run("diff", "-f", tmp_path / "written.yaml", "-o", "json")
    assert same.exit_code == 0, same.output
    assert {step["change"] for step in json.loads(same.stdout)["steps"]} == {"unchanged"}, same.stdout

    (folder / "two" / "edgeflow.yaml").unlink()
    for file in (folder / "two" / "f").iterdir():
        file.unlink()
    application(folder, "one", text="?")
    assert "gone from the folder" in run("diff", "-f", folder).stdout
    kept = run("apply", "-f", folder, "-o", "json")
    assert kept.exit_code == 0 and client.manifest("two") and client.quota("one"), "without --prune nothing is removed"
    asked = run("apply", "-f", folder, "--prune")
    assert asked.exit_code == 1 and "manifest of two" in asked.output and "quota of one" in asked.output
    assert client.manifest("two") and client.quota("one"), "nobody has agreed"
    pruned = run("apply", "-f", folder, "--prune", "--yes")
    assert pruned.exit_code == 0 and "removed manifest of two" in pruned.stdout, pruned.output
    assert client.manifest("two") is None and client.quota("one") is None
    assert client.policies("two")["rules"], "what the folder still says stays"
    (record,) = client.sets()
    assert record["name"] == "apps" and {part["kind"] for part in record["parts"]} == {"manifest", "policies"}


def test_nothing_is_changed_when_one_document_is_wrong(
    run: Callable[..., Result], client: Operator, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    application(folder, "three")
    application(folder, "four", pop="paris")
    (folder / "q.yaml").write_text("namespace: three\nquota: {bytes_per_s: 5M}\n")
    failed = run("apply", "-f", folder)
    assert failed.exit_code == 1 and "PoP 'paris' does not exist" in failed.output and "four" in failed.output
    assert client.manifest("three") is None and client.quota("three") is None and client.set_record("wrong") is None
    (folder / "four" / "edgeflow.yaml").unlink()
    (folder / "four" / "f" / "config.yaml").unlink()
    (folder / "q.yaml").write_text("namespace: three\nquota: {speed: 5M}\n")
    failed = run("apply", "-f", folder)
    assert failed.exit_code == 1 and "q.yaml: a quota has no field 'speed'" in failed.output
    assert client.manifest("three") is None
    assert "--prune is about a set" in run("apply", "-f", folder / "three" / "edgeflow.yaml", "--prune").output


def test_what_another_set_has_taken_over_is_not_pruned(
    run: Callable[..., Result], client: Operator, tmp_path: Path
) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "q.yaml").write_text("namespace: shared\nquota: {events_per_s: 900}\n")
        (tmp_path / name / "own.yaml").write_text(f"namespace: {name}\nquota: {{events_per_s: 900}}\n")
        assert run("apply", "-f", tmp_path / name).exit_code == 0
    (tmp_path / "left" / "q.yaml").unlink()
    pruned = run("apply", "-f", tmp_path / "left", "--prune", "--yes")
    assert pruned.exit_code == 0 and "removed" not in pruned.stdout, pruned.output
    assert client.quota("shared") is not None


def test_one_pop_takes_it_while_the_other_is_away(
    run: Callable[..., Result], cluster: LocalCluster, client: Operator, tmp_path: Path, wait_until: Wait
) -> None:
    folder = tmp_path / "away"
    application(folder, "five", pop="ny")
    (folder / "q.yaml").write_text("namespace: five\nquota: {events_per_s: 700}\n")
    access = cluster.pop("ny")
    with Operator(access.api_url, access.token) as other:
        assert run("link", "cut", "--between", "la,ny").exit_code == 0
        done = run("apply", "-f", folder, "--pop", "la", "--no-wait")
        assert done.exit_code == 0, done.output
        assert client.manifest("five") and other.manifest("five") is None
        assert run("link", "heal", "--between", "la,ny").exit_code == 0
        wait_until(lambda: other.manifest("five") and other.quota("five"), "ny hears of it", 60)
        wait_until(lambda: [one["state"] for one in other.functions("five")] == ["ready"], "it runs at ny", 90)
