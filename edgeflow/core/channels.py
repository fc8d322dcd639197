"""Names: namespaces, channels, keys, and MQTT filters over channels.

What it is: the one place that says which names are legal and which filter matches which channel (MQTT 5, section 4.7).
What must stay true: a channel always starts with its namespace; the MQTT topic is the channel, nothing added.
"""

import re

from edgeflow.errors import BadName

NAMESPACE = re.compile(r"[a-z0-9-]{1,63}")
NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62})")
MAX_CHANNEL_BYTES = 512
MAX_KEY_BYTES = 512

SYSTEM_NAMESPACE = "system"
RECEIPTS_LEVEL = "_re"


def check_namespace(name: str) -> str:
    """`name` itself. Raises BadName unless it is [a-z0-9-]{1,63}."""
    if not NAMESPACE.fullmatch(name):
        raise BadName(f"{name!r} is not a namespace")
    return name


def check_channel(channel: str) -> str:
    """`channel` itself. Raises BadName unless it is `<namespace>/<path>` without wildcards or empty levels."""
    namespace, slash, path = channel.partition("/")
    check_namespace(namespace)
    if not slash or not path:
        raise BadName(f"channel {channel!r} has no path below its namespace")
    _check_path("channel", channel, path, MAX_CHANNEL_BYTES)
    return channel


def check_key(key: str) -> str:
    """`key` (without its namespace) itself. Raises BadName when it is empty, too long, or holds illegal characters."""
    _check_path("key", key, key, MAX_KEY_BYTES)
    return key


def namespace_of(channel: str) -> str:
    """The namespace of a channel."""
    return channel.partition("/")[0]


def full_channel(namespace: str, name: str) -> str:
    """A channel from a manifest's relative name, checked. A name that begins with the namespace is taken as it is."""
    return check_channel(name if name.startswith(namespace + "/") else f"{namespace}/{name}")


def is_reserved(channel: str) -> bool:
    """Levels that start with `_` belong to edgeflow (`_re` receipts, `_dead` dead letters)."""
    return channel.partition("/")[2].startswith("_")


def matches(pattern: str, channel: str) -> bool:
    """Whether the MQTT filter `pattern` (with + and #) matches `channel`."""
    if pattern in (channel, "#"):
        return True
    wanted, given = pattern.split("/"), channel.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in ("+", given[index]):
            return False
    return len(wanted) == len(given)


def check_filter(pattern: str) -> str:
    """`pattern` itself. Raises BadName unless it is a legal MQTT filter below one namespace."""
    namespace, _, path = pattern.partition("/")
    check_namespace(namespace)
    levels = path.split("/")
    for index, level in enumerate(levels):
        if level == "#" and index == len(levels) - 1:
            continue
        if level == "+":
            continue
        if not level or "#" in level or "+" in level:
            raise BadName(
                f"{pattern!r} is not a channel filter", hint="`+` stands for one level, `#` for all that follow."
            )
    return pattern


def _check_path(what: str, name: str, path: str, limit_bytes: int) -> None:
    if len(name.encode("utf-8", "surrogatepass")) > limit_bytes:
        raise BadName(f"{what} {name[:60]!r}... is longer than {limit_bytes} bytes")
    if not path or any(not level for level in path.split("/")):
        raise BadName(f"{what} {name!r} has an empty level")
    if any(char in "+#$" or ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in path):
        raise BadName(f"{what} {name!r} holds +, #, $ or a control character")
