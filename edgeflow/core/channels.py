"""Names: namespaces, channels, keys, and MQTT filters over channels, with captures.

What it is: the one place that says which names are legal, which filter matches which channel (MQTT 5, section 4.7), and what a capture
(`cam/{id}/frames`: a level with a name) takes from a channel or puts into one.
What must stay true: a channel always starts with its namespace; the MQTT topic is the channel, nothing added; filling a template with the
captures of a channel gives a channel that the template's filter matches.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from edgeflow.errors import BadName

NAMESPACE = re.compile(r"[a-z0-9-]{1,63}")
NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62})")
MAX_CHANNEL_BYTES = 512
MAX_KEY_BYTES = 512

CAPTURE = re.compile(r"\{([A-Za-z][A-Za-z0-9_]{0,31})\}")

ONE_LEVEL = "+"

SYSTEM_NAMESPACE = "system"
RECEIPTS_LEVEL = "_re"
INVOKE_LEVEL = "_invoke"
DEAD_LEVEL = "_dead"
RESERVED_LEVELS = (RECEIPTS_LEVEL, INVOKE_LEVEL, DEAD_LEVEL)
"""First levels below a namespace that mean something to edgeflow; all that begin with _ are reserved."""


def check_namespace(name: str) -> str:
    """`name` itself. Raises BadName unless it is [a-z0-9-]{1,63}."""
    if not NAMESPACE.fullmatch(name):
        raise BadName(f"{name!r} is not a namespace")
    return name


@lru_cache(maxsize=4096)
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


def delivers(pattern: str, channel: str) -> bool:
    """Whether a function that subscribes to the filter `pattern` gets the events of `channel`.

    As `matches`, but a wildcard does not stand for levels that belong to edgeflow: `vision/#` gets nothing of `vision/_dead/f`.
    """
    return matches(pattern, channel) and (is_reserved(pattern) or not is_reserved(channel))


def overlap(one: str, other: str) -> bool:
    """Whether two MQTT filters have a channel in common."""
    first, second = one.split("/"), other.split("/")
    for left, right in zip(first, second, strict=False):
        if "#" in (left, right):
            return True
        if left != right and "+" not in (left, right):
            return False
    # `a/#` stands for `a` as well.
    longer, length = max(first, second, key=len), min(len(first), len(second))
    return len(longer) == length or longer[length:] == ["#"]


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


# ------------------------------------------------------------------ captures


def parse_filter(text: str) -> tuple[str, dict[str, int]]:
    """The MQTT filter of a full channel name with wildcards and captures, and the level of each capture (the namespace is level 0).

    `vision/cam/{id}/frames` is `vision/cam/+/frames` with {"id": 2}. Raises BadName when it is no filter below one namespace.
    """
    captures: dict[str, int] = {}
    levels = text.split("/")
    if "" in levels:
        raise BadName(f"channel {text!r} has an empty level")
    for index, level in enumerate(levels):
        found = CAPTURE.fullmatch(level)
        if found is None:
            if "{" in level or "}" in level:
                raise BadName(
                    f"{text!r}: {level!r} is not a capture", hint="A capture is a whole level: cam/{id}/frames."
                )
            continue
        if found[1] in captures:
            raise BadName(f"{text!r} captures {found[1]!r} twice", hint="Give each capture a name of its own.")
        captures[found[1]] = index
        levels[index] = "+"
    pattern = check_filter("/".join(levels))
    plain = "/".join(level for level in levels[1:] if level not in ("+", "#"))
    if plain:
        _check_path("channel", text, plain, MAX_CHANNEL_BYTES)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CHANNEL_BYTES:
        raise BadName(f"channel {text[:60]!r}... is longer than {MAX_CHANNEL_BYTES} bytes")
    return pattern, captures


def captures_of(captures: Mapping[str, int], channel: str) -> dict[str, str]:
    """What the captures of a filter are in a channel that it matches."""
    if not captures:
        return {}
    levels = channel.split("/")
    return {name: levels[index] for name, index in captures.items() if index < len(levels)}


def fill(template: str, captures: Mapping[str, str]) -> str:
    """The channel of a template (`vision/cam/{id}/faces`) with its captures filled in.

    Raises BadName when a capture is not there, or when the template leaves a level open (`+`).
    """
    levels = template.split("/")
    for index, level in enumerate(levels):
        found = CAPTURE.fullmatch(level)
        if found is not None:
            value = captures.get(found[1])
            if value is None:
                raise BadName(
                    f"{template!r} needs the capture {found[1]!r}, which the input does not have",
                    hint="Name the whole channel: ctx.emit(channel, data).",
                )
            levels[index] = value
        elif level in ("+", "#"):
            raise BadName(f"{template!r} leaves a level open", hint="Name the whole channel: ctx.emit(channel, data).")
    return check_channel("/".join(levels))


def template_filter(template: str) -> str:
    """The MQTT filter of all channels that a template can become: `{name}` is `+`."""
    return "/".join("+" if CAPTURE.fullmatch(level) else level for level in template.split("/"))


def _check_path(what: str, name: str, path: str, limit_bytes: int) -> None:
    if len(name.encode("utf-8", "surrogatepass")) > limit_bytes:
        raise BadName(f"{what} {name[:60]!r}... is longer than {limit_bytes} bytes")
    if not path or any(not level for level in path.split("/")):
        raise BadName(f"{what} {name!r} has an empty level")
    if any(char in "+#$" or ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in path):
        raise BadName(f"{what} {name!r} holds +, #, $ or a control character")
