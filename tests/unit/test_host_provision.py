import json
import stat
from pathlib import Path

import pytest

from edgeflow.host import brokerconf, layout, programs, provision
from edgeflow.host.errors import BadClusterSpec
from edgeflow.settings import PopSettings


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "find_plugin", lambda: Path("/usr/lib/mosquitto_dynamic_security.so"))
    home = layout.Home(tmp_path / "home")
    identity, _ = layout.plan(home, ("chicago", "la", "ny"), any_ports=True)
    yield home
    for entry in sorted(identity.run_root.rglob("*"), reverse=True):
        entry.rmdir()
    identity.run_root.rmdir()


def make(home):
    identity = layout.Identity.load(home)
    provision.provision(provision.embedded_spec(home, identity))
    return identity


def snapshot(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_settings_load_and_point_at_each_other(home):
    identity = make(home)
    chicago, la = (PopSettings.load(home.config_file(pop)) for pop in ("chicago", "la"))
    assert chicago.cluster == la.cluster == identity.cluster
    # The smaller id dials, through the proxy; the other one is known at its own address.
    assert chicago.link.peers["la"].port == identity.ports["wan", "chicago,la"]
    assert la.link.peers["chicago"].port == chicago.link.port
    assert set(la.link.peers) == {"chicago", "ny"}
    assert la.public.mqtt_ws_url == f"ws://127.0.0.1:{la.api.port}/mqtt"
    for settings in (chicago, la):
        for file in (
            settings.link.key,
            settings.link.cert,
            settings.link.ca,
            settings.api.token_file,
            settings.mqtt.password_file,
        ):
            assert file.is_file()


def test_twice_is_once(home):
    make(home)
    before = snapshot(home.root)
    make(home)
    assert snapshot(home.root) == before


def test_nothing_is_readable_by_others(home):
    make(home)
    readable = [str(path) for path in (home.root / "pops").rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert readable == []


def test_secrets_differ_between_pops_and_accounts(home):
    make(home)
    secrets = [
        (home.secrets_dir(pop) / name).read_text() for pop in ("chicago", "la", "ny") for name in provision.SECRET_FILES
    ]
    assert len(set(secrets)) == len(secrets)


def test_accounts_added_while_it_ran_survive(home):
    make(home)
    file = home.pop_dir("la") / "dynsec.json"
    document = json.loads(file.read_text())
    document["clients"].append({"username": "more"})
    file.write_text(json.dumps(document))
    make(home)
    assert json.loads(file.read_text()) == document


def test_operator_settings_are_merged(home):
    (home.root / "settings.json").write_text('{"limits": {"gate_timeout_ms": 123}, "log_level": "debug"}')
    make(home)
    settings = PopSettings.load(home.config_file("la"))
    assert settings.limits.gate_timeout_ms == 123
    assert settings.limits.hops == 16
    assert settings.log_level == "debug"


def test_wrong_operator_settings_name_the_field(home):
    (home.root / "settings.json").write_text('{"limits": {"gate_timeout": 123}}')
    with pytest.raises(BadClusterSpec, match=r"limits\.gate_timeout"):
        make(home)


def test_dynsec_denies_by_default_and_hides_passwords():
    text = brokerconf.dynsec({"admin": "a-secret", "gateway": "g-secret", "operator": "o-secret"})
    document = json.loads(text)
    assert set(document["defaultACLAccess"].values()) == {False}
    assert "-secret" not in text
    for role in document["roles"]:
        allowed = {acl["topic"] for acl in role["acls"] if acl["allow"] and acl["acltype"] == "publishClientSend"}
        assert allowed == ({"$CONTROL/dynamic-security/#"} if role["rolename"] == "admin" else {"#"})


def docker_arguments(root, *more):
    places = [f"--{name}-dir={root}/{name}/{{pop}}" for name in ("config", "broker", "store", "state", "run")]
    return [*places, f"--ca-dir={root}/ca", f"--wan-dir={root}/wan", "--plugin=/plugin.so", *more]


def test_docker_mode_writes_each_volume(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    arguments = docker_arguments(
        tmp_path, "--socket-volume=proj-{pop}-run", "--public-api-port=9101,9201,9301", f"--home-dir={tmp_path}/home"
    )
    assert provision.main(arguments) == 0
    settings = PopSettings.load(tmp_path / "config/la/pop.json")
    assert settings.mode == "docker"
    assert settings.mqtt.host == "la-broker"
    assert settings.link.peers["ny"].host == "wan"
    assert settings.link.peers["chicago"].host == "chicago-data"
    assert settings.api.host == "0.0.0.0"
    assert settings.public.api_url == "http://127.0.0.1:9201"
    assert settings.runner.socket_volume == "proj-la-run"
    assert f'dir "{tmp_path}/store/la/redis"' in (tmp_path / "store/la/redis.conf").read_text()
    first = snapshot(tmp_path)
    assert provision.main(arguments) == 0
    assert snapshot(tmp_path) == first


def test_docker_mode_tells_the_users_home(tmp_path):
    (tmp_path / "home").mkdir()
    assert provision.main(docker_arguments(tmp_path, f"--home-dir={tmp_path}/home")) == 0
    document = json.loads((tmp_path / "home/cluster.json").read_text())
    access = document["pops"]["ny"]
    assert access["api"]["url"] == "http://127.0.0.1:8103"
    token = (tmp_path / "home" / access["api"]["token_file"]).read_text()
    assert token == (tmp_path / "config/ny/secrets/operator.token").read_text()


def test_docker_mode_leaves_a_running_embedded_cluster_alone(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/cluster.json").write_text('{"mode": "embedded", "state": "ready"}')
    assert provision.main(docker_arguments(tmp_path, f"--home-dir={tmp_path}/home")) == 0
    assert json.loads((tmp_path / "home/cluster.json").read_text())["mode"] == "embedded"
    assert json.loads((tmp_path / "home/docker/cluster.json").read_text())["mode"] == "docker"


def test_too_few_ports_are_refused(tmp_path, capsys):
    assert provision.main(docker_arguments(tmp_path, "--public-mqtt-port=1,2")) == 1
    assert "2 ports are given" in capsys.readouterr().err


def test_a_machine_with_an_address_is_reached_there_but_for_its_broker(home):
    identity, _ = layout.plan(home, None, host="192.0.2.1")
    make(home)
    la = PopSettings.load(home.config_file("la"))
    port = identity.ports["api", "la"]
    assert (la.link.host, la.api.host) == ("0.0.0.0", "0.0.0.0")
    assert la.link.advertise is not None
    assert (la.link.advertise.host, la.link.advertise.port) == ("192.0.2.1", identity.ports["link", "la"])
    assert (la.public.api_url, la.public.mqtt_ws_url) == (f"http://192.0.2.1:{port}", f"ws://192.0.2.1:{port}/mqtt")
    listeners = [
        line.split()[1:]
        for line in (home.pop_dir("la") / "mosquitto.conf").read_text().splitlines()
        if line.startswith("listener") and not line.startswith("listener 0")
    ]
    assert listeners == [[str(la.public.mqtt_port), "127.0.0.1"]], "MQTT is not encrypted"
    assert la.public.mqtt_host == "127.0.0.1"


def test_without_an_address_all_is_on_loopback(home):
    make(home)
    la = PopSettings.load(home.config_file("la"))
    assert (la.link.host, la.api.host, la.link.advertise) == ("127.0.0.1", "127.0.0.1", None)
    layout.plan(home, None, host="192.0.2.1")
    layout.plan(home, None, host="localhost")
    make(home)
    assert PopSettings.load(home.config_file("la")) == la
