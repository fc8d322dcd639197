"""The verbs that run a cluster, as a user types them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from host_fakes import commands

from edgeflow.host import lifecycle
from edgeflow.host.local import LocalCluster

COMMAND = [sys.executable, "-c", "from edgeflow.cli.main import app; app()"]
VERBS = [
    "up",
    "down",
    "status",
    "env",
    "doctor",
    "logs",
    "link",
    "apply",
    "build",
    "get",
    "publish",
    "tail",
    "kv",
    "dlq",
]


def edgeflow(*arguments, home, check=True, **more):
    environment = {**os.environ, "EDGEFLOW_HOME": str(home), "COLUMNS": "200", **more}
    result = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def cluster(programs):
    with LocalCluster(("chicago", "la"), commands=commands()) as made:
        yield made


@pytest.fixture
def home(cluster):
    return cluster.home.root


def test_every_verb_has_help(tmp_path):
    listing = edgeflow("--help", home=tmp_path).stdout
    for verb in VERBS:
        assert verb in listing
    for verb in ("up", "logs", "link"):
        assert "Usage:" in edgeflow(verb, "--help", home=tmp_path).stdout


def test_version(tmp_path):
    assert edgeflow("--version", home=tmp_path).stdout.startswith("edgeflow ")


def test_status_has_the_promised_fields(home):
    document = json.loads(edgeflow("status", "-o", "json", home=home).stdout)
    assert [pop["id"] for pop in document["pops"]] == ["chicago", "la"]
    for pop in document["pops"]:
        assert pop["state"] == "ready"
        assert set(pop["api"]) == {"url", "token_file"}
        assert set(pop["mqtt"]) == {"host", "port", "ws_url", "username", "password_file"}
        assert len(open_text(pop["api"]["token_file"])) >= 43
        assert len(open_text(pop["mqtt"]["password_file"])) >= 43
    assert "chicago" in edgeflow("status", home=home).stdout


def open_text(path):
    with open(path) as file:
        return file.read().strip()


def test_env_can_be_evaluated(home, cluster):
    text = edgeflow("env", "--pop", "la", home=home).stdout
    shown = subprocess.run(
        ["sh", "-euc", f'{text}\nprintf "%s %s" "$EDGEFLOW_URL" "$EDGEFLOW_TOKEN"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == f"{cluster.pop('la').api_url} {cluster.pop('la').token}"
    assert "mosquitto_pub" in text
    assert "curl" in text


def test_link_delay_writes_what_the_proxy_reads(home, cluster):
    edgeflow("link", "delay", "--between", "la,chicago", "--ms", "25", home=home)
    assert json.loads(cluster.home.wan_file.read_text())["links"][0]["delay_ms"] == 25
    edgeflow("link", "cut", "--between", "chicago,la", home=home)
    assert json.loads(cluster.home.wan_file.read_text())["links"][0]["cut"] is True
    edgeflow("link", "heal", "--between", "chicago,la", home=home)
    edgeflow("link", "delay", "--between", "la,chicago", "--ms", "0", home=home)
    assert (
        json.loads(cluster.home.wan_file.read_text())["links"][0] | {"delay_ms": 0, "cut": False}
        == json.loads(cluster.home.wan_file.read_text())["links"][0]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env", "--pop", "paris"], ["no PoP 'paris'", "chicago, la"]),
        (["link", "delay", "--between", "chicago", "--ms", "1"], ["does not name two PoPs"]),
        (["link", "delay", "--between", "chicago,paris", "--ms", "1"], ["no PoP 'paris'"]),
        (["logs", "--process", "mysql"], ["no process 'mysql'", "redis"]),
        (["logs", "vision/nothing"], ["No instance of vision/nothing"]),
    ],
)
def test_errors_name_the_thing_and_the_fix_without_a_traceback(home, arguments, words):
    result = edgeflow(*arguments, home=home, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in [*words, "hint:"]:
        assert word in result.stderr


def test_without_a_cluster_it_says_how_to_start_one(tmp_path):
    result = edgeflow("status", home=tmp_path, check=False)
    assert result.returncode == 1
    assert "edgeflow up" in result.stderr
    assert edgeflow("down", home=tmp_path).returncode == 0


def test_bad_pops_are_refused_before_anything_is_made(tmp_path):
    result = edgeflow("up", "--mode", "embedded", "--pops", "a,B", home=tmp_path / "home", check=False)
    assert result.returncode == 1
    assert "'B' is not a PoP id" in result.stderr
    assert not (tmp_path / "home" / "pops").exists()


def test_foreground_gives_up_on_a_crash_loop_and_leaves_nothing(tmp_path, programs):
    command = [
        sys.executable,
        str(Path(__file__).with_name("host_foreground.py")),
        "up",
        "--mode",
        "embedded",
        "--pops",
        "solo",
    ]
    environment = {**os.environ, "EDGEFLOW_HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "solo/data does not stay up (exit status 4" in result.stderr
    assert "no such thing: y" in result.stderr
    assert json.loads((tmp_path / "cluster.json").read_text())["state"] == "stopped"
    lifecycle.down(home=tmp_path, purge=True)


def test_logs_of_processes_and_functions(home, cluster):
    log = cluster.home.instance_logs_dir("la") / "vision.detect-abc.log"
    record = {
        "event": "seen",
        "timestamp": "2026-01-01T10:00:00.123Z",
        "invocation": "0123456789ab",
        "function": "detect",
        "n": 3,
    }
    log.write_text(f"found 3 faces\n{json.dumps(record)}\n")
    for name in ("vision/detect", "detect"):
        plain, seen = edgeflow("logs", name, home=home).stdout.splitlines()
        assert plain.split() == ["la", "detect-abc", "found", "3", "faces"]
        assert re.fullmatch(r"\d\d:\d\d:00\.123 la detect-abc 01234567 seen n=3", seen)
    _, line = edgeflow("logs", "detect", "-o", "json", home=home).stdout.splitlines()
    assert json.loads(line) == {"log": "la detect-abc", **record}
    assert len(edgeflow("logs", "detect", "-n", "1", home=home).stdout.splitlines()) == 1
    assert "Ready to accept connections" in edgeflow(
        "logs", "--process", "redis", "--pop", "la", home=home
    ).stdout.replace("ready to accept", "Ready to accept")
    assert "process_started" in edgeflow("logs", "--process", "supervisor", home=home).stdout


def test_logs_follow(home, cluster, wait_until):
    log = cluster.home.instance_logs_dir("la") / "vision.follow-abc.log"
    log.write_text("first\n")
    environment = {**os.environ, "EDGEFLOW_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    reader = subprocess.Popen(
        [*COMMAND, "logs", "vision/follow", "-f"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout.readline().split() == ["la", "follow-abc", "first"]
        with log.open("a") as file:
            file.write("second\n")
        assert reader.stdout.readline().split() == ["la", "follow-abc", "second"]
    finally:
        reader.send_signal(signal.SIGINT)
        assert reader.wait(10) == 130
        reader.stdout.close()


def test_doctor_reports_as_json(home):
    document = json.loads(edgeflow("doctor", "-o", "json", home=home).stdout)
    names = {finding["name"] for finding in document["findings"]}
    assert {"python", "mosquitto", "redis-server", "docker engine", "ports", "disk"} <= names
    assert "embedded" in document["modes"]
    assert all(finding["fix"] for finding in document["findings"] if finding["level"] != "ok")


def test_doctor_without_the_programs_says_how_to_install_them(tmp_path, monkeypatch):
    from edgeflow.host import checks, compose, programs
    from edgeflow.host.layout import Home

    monkeypatch.setattr(programs, "find_program", lambda name: None)
    monkeypatch.setattr(compose, "engine_version", lambda: None)
    findings = {finding.name: finding for finding in checks.examine(Home(tmp_path))}
    assert findings["mosquitto"].level == "problem"
    assert "mosquitto" in findings["mosquitto"].fix
    assert checks.usable_modes(list(findings.values())) == []
