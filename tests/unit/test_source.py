"""A folder that runs as it is belongs to `edgeflow dev`: any other PoP refuses it, at its door and in its runner."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from api_fakes import TOKEN, FakeStore, make_api, served

from edgeflow.cli import new
from edgeflow.cli.apply import PopApi, Target
from edgeflow.cli.dev import Project
from edgeflow.core.manifest import check_resolved, revision_of
from edgeflow.errors import BadManifest, EdgeflowError
from edgeflow.runner.process import ProcessDriver
from edgeflow.settings import PopSettings


@pytest.fixture
def project(tmp_path: Path) -> Project:
    new.write(tmp_path / "hello", "hello")
    return Project(tmp_path / "hello")


def settings(folder: Path, **runner: Any) -> PopSettings:
    secret = folder / "secret"
    return PopSettings.model_validate({
        "pop": "dev", "cluster": "c", "mode": "embedded", "state_dir": folder / "pop" / "state", "run_dir": folder / "run", "runner": runner,
        "store": {"redis_socket": secret}, "mqtt": {"password_file": secret}, "link": {"port": 1, "ca": secret, "cert": secret, "key": secret},
        "api": {"port": 1, "token_file": secret},
        "public": {"api_url": "", "api_token_file": secret, "mqtt_host": "", "mqtt_port": 1, "mqtt_ws_url": "", "mqtt_password_file": secret},
    })  # fmt: skip


def test_the_revision_is_that_of_the_manifest_and_the_requirements_and_not_of_the_code(project: Project) -> None:
    def revision() -> str:
        return str(project.resolved()["functions"]["hello"]["revision"])

    first = revision()
    (project.folder / "handler.py").write_text("changed = True\n")
    assert revision() == first
    (project.folder / "requirements.txt").write_text("msgpack\n")
    second = revision()
    (project.folder / "edgeflow.yaml").write_text(new.MANIFEST.format(name="hello").replace("loud", "quiet"))
    assert len({first, second, revision()}) == 3


def test_all_functions_are_placed_here_and_images_are_left_out(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "edgeflow.yaml").write_text(
        "namespace: a\nfunctions:\n  one: {build: ., subscribe: x, place: {pops: [la]}, scale: {min: 0, max: 4}}\n  two: {image: 'some:1', subscribe: x, place: {pops: [ny]}}\n"
    )
    functions = project.resolved()["functions"]
    assert list(functions) == ["one"] and functions["one"]["place"]["pops"] == ["dev"]
    assert functions["one"]["scale"] == {"instances": 1}
    assert functions["one"]["source"] == {
        "folder": str(project.folder),
        "requirements": hashlib.sha256(new.REQUIREMENTS.encode()).hexdigest(),
    }
    assert "two is left out" in capsys.readouterr().err


def test_a_program_that_is_no_handler_is_packed_and_its_changes_are_seen(project: Project) -> None:
    (project.folder / "srv").mkdir()
    (project.folder / "srv" / "server.py").write_text("one")
    (project.folder / "edgeflow.yaml").write_text(
        "namespace: a\nfunctions:\n  srv: {contract: http, command: [python, server.py], build: ./srv, subscribe: x}\n"
    )
    (digest,) = {one["bundle"] for one in project.resolved()["functions"].values()}
    assert list(project.archives) == [digest]
    before = project.written()
    (project.folder / "srv" / "server.py").write_text("two!")
    assert [project.written() == before, project.written() == before] == [True, False]


def test_an_ordinary_pop_refuses_it_at_its_door(project: Project, tmp_path: Path) -> None:
    resolved = project.resolved()
    function = resolved["functions"]["hello"]
    function["place"] = {"pops": ["chicago"]}
    function["revision"] = revision_of(function)
    check_resolved(resolved)
    with (
        served(make_api(tmp_path, FakeStore())) as url,
        PopApi(Target(url, TOKEN)) as api,
        pytest.raises(EdgeflowError, match=r"functions\.hello\.source"),
    ):
        api.put_manifest(resolved)


def test_an_ordinary_pop_refuses_it_in_its_runner(project: Project, tmp_path: Path) -> None:
    function = check_resolved(project.resolved()).functions["hello"]
    with pytest.raises(BadManifest, match="edgeflow dev"):
        ProcessDriver(settings(tmp_path)).prepare("hello", "hello", function, None, lambda line: None)
    driver = ProcessDriver(settings(tmp_path, dev_dir=str(tmp_path / ".edgeflow"), venvs_dir=str(tmp_path / "venvs")))
    (project.folder / "handler.py").unlink()
    with pytest.raises(BadManifest, match=r"no handler\.py"):
        driver.prepare("hello", "hello", function, None, lambda line: None)


def test_a_folder_in_a_manifest_is_named_as_it_is_and_nothing_else(project: Project) -> None:
    resolved = project.resolved()
    for folder in ("relative", "/x" * 3000):
        resolved["functions"]["hello"]["source"]["folder"] = folder
        with pytest.raises(BadManifest, match="source"):
            check_resolved(resolved)
