"""How concurrent writes of several PoPs become one value, without I/O.

What must stay true: the order in which logs arrive changes nothing; the Lua library (22_values.lua) does the same, which tests check side by side.
"""

import hashlib
from collections.abc import Mapping


def counter_value(fields: Mapping[bytes, bytes]) -> int:
    """The value of a counter from what the store keeps of it: per component `<log>` its sum, `|n` how far it is counted, `|d` what is deleted."""
    total = 0
    for name, number in fields.items():
        if name.endswith(b"|n"):
            component = name[:-2]
            until, _, deleted = fields.get(component + b"|d", b"0 0").partition(b" ")
            if int(number) > int(until):
                total += int(fields.get(component, 0)) - int(deleted)
    return total


def set_version(applied: Mapping[str, int]) -> str:
    """A text that is the same wherever the same operations on a set are applied."""
    text = ",".join(f"{log}:{seq}" for log, seq in sorted(applied.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
