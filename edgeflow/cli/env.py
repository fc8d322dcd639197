"""`edgeflow env`: what a shell needs to talk to a PoP with stock tools."""

import shlex
import sys

from edgeflow.cli.reach import Output, OutputOption, PopOption, print_json
from edgeflow.host.discover import Cluster, PopAccess, find


def env(pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Print exports, and lines to paste: mosquitto_pub, mosquitto_sub, curl.

    In scripts: eval "$(edgeflow env --pop la)". There the lines to paste are comments.
    """
    cluster = find()
    access = cluster.pop(pop)
    if output is Output.JSON:
        print_json(variables(cluster, access))
        return
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables(cluster, access).items()]
    comment = "" if sys.stdout.isatty() else "# "
    lines += ["", *(f"{comment}{line}" for line in examples(access))]
    sys.stdout.write("\n".join(lines) + "\n")


def variables(cluster: Cluster, access: PopAccess) -> dict[str, str]:
    """Environment variables for one PoP. They hold its secrets."""
    return {
        "EDGEFLOW_HOME": str(cluster.home.root),
        "EDGEFLOW_POP": access.id,
        "EDGEFLOW_URL": access.api_url,
        "EDGEFLOW_TOKEN": access.token,
        "EDGEFLOW_MQTT_HOST": access.mqtt_host,
        "EDGEFLOW_MQTT_PORT": str(access.mqtt_port),
        "EDGEFLOW_MQTT_WS_URL": access.mqtt_ws_url,
        "EDGEFLOW_MQTT_USERNAME": access.mqtt_username,
        "EDGEFLOW_MQTT_PASSWORD": access.mqtt_password,
    }


def examples(access: PopAccess) -> list[str]:
    """Commands that work as they are, in any shell, whether or not the exports were made."""
    password, token = shlex.quote(str(access.mqtt_password_file)), shlex.quote(str(access.api_token_file))
    mqtt = f'-h {access.mqtt_host} -p {access.mqtt_port} -u {access.mqtt_username} -P "$(cat {password})"'
    http = f'-H "Authorization: Bearer $(cat {token})"'
    return [
        f"mosquitto_sub {mqtt} -t 'demo/#' -v",
        f"mosquitto_pub {mqtt} -q 1 -t demo/hello -m 'hello from {access.id}'",
        f"mosquitto_pub {mqtt} -q 1 -t vision/chunks -f clip.mp4",
        f"curl -sS {http} {access.api_url}/v1/pops",
        f"curl -sS {http} -d 'hello' {access.api_url}/v1/channels/demo/hello",
        f"curl -sS {http} -T clip.mp4 {access.api_url}/v1/ekv/vision/clip7",
        f"curl -sSN {http} {access.api_url}/v1/channels/demo/hello?from=start",
    ]
