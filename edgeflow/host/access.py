"""How a client reaches a PoP: the part of its settings that is public, in the shape of cluster.json."""

from collections.abc import Mapping
from typing import Any


def public_access(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a client reaches a PoP, from its pop.json: the `api` and `mqtt` objects of cluster.json."""
    public = settings["public"]
    return {
        "api": {"url": public["api_url"], "token_file": public["api_token_file"]},
        "mqtt": {
            "host": public["mqtt_host"],
            "port": public["mqtt_port"],
            "ws_url": public["mqtt_ws_url"],
            "username": public.get("mqtt_username", "operator"),
            "password_file": public["mqtt_password_file"],
        },
    }
