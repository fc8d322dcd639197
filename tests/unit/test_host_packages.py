import pytest

from edgeflow.host import packages, programs
from edgeflow.host.errors import MissingProgram


@pytest.fixture
def lacking(monkeypatch):
    """A Debian machine without Redis, an ordinary user, and what was run."""
    ran = []
    state = {"wrong": {"redis-server": "redis-server is not installed (>= 7.0 is needed)"}}

    def run(command, **_):
        ran.append(" ".join(command))
        if "install" in command:
            state["wrong"] = {}
        return type("Result", (), {"returncode": 0})()

    monkeypatch.setattr(programs, "problems", lambda: state["wrong"])
    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CI", raising=False)
    return ran


def test_asks_before_sudo_and_respects_no(lacking):
    questions = []

    def ask(question):
        questions.append(question)
        return False

    with pytest.raises(MissingProgram) as refused:
        packages.ensure_programs(yes=False, say=lambda _: None, ask=ask)
    assert len(questions) == 1
    assert "sudo apt-get install" in questions[0]
    assert "sudo apt-get install" in refused.value.hint
    assert lacking == []


def test_nobody_to_ask_is_no(lacking):
    with pytest.raises(MissingProgram):
        packages.ensure_programs(yes=False, say=lambda _: None, ask=None)
    assert lacking == []


@pytest.mark.parametrize("how", ["yes", "answer", "ci"])
def test_installs_what_is_missing_only(lacking, monkeypatch, how):
    if how == "ci":
        monkeypatch.setenv("CI", "true")
    packages.ensure_programs(yes=how == "yes", say=lambda _: None, ask=lambda _: how == "answer")
    assert lacking[-1] == "sudo apt-get install -y -q --no-install-recommends redis-server"


def test_without_apt_it_says_what_to_install(lacking, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(MissingProgram, match="redis-server is not installed"):
        packages.ensure_programs(yes=True, say=lambda _: None)
    assert lacking == []


def test_nothing_is_done_when_nothing_is_missing(lacking, monkeypatch):
    monkeypatch.setattr(programs, "problems", dict)
    packages.ensure_programs(yes=False, say=lambda _: None)
    assert lacking == []
