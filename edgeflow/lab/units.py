"""Delays and bandwidths as people write them."""

import re

from edgeflow.lab.errors import BadTrouble

_DELAY = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_BANDWIDTH = re.compile(r"(\d+(?:\.\d+)?)([kMG])bit(?:/s)?")
_FACTOR = {"k": 1.0, "M": 1000.0, "G": 1_000_000.0}
NONE = ("0", "none")


def delay_ms(text: str) -> float:
    """`20ms`, `1.5s`; `0` or `none`: no delay. Raises BadTrouble."""
    if text in NONE:
        return 0.0
    found = _DELAY.fullmatch(text)
    if found is None:
        raise BadTrouble(f"{text[:40]!r} is not a delay.", hint="Write a number with ms or s, as in 20ms; 0 is none.")
    return float(found[1]) * (1000.0 if found[2] == "s" else 1.0)


def kbit_s(text: str) -> float:
    """`50Mbit`, `800kbit/s`; `0` or `none`: no bound, which is 0. Raises BadTrouble."""
    if text in NONE:
        return 0.0
    found = _BANDWIDTH.fullmatch(text)
    if found is None or not float(found[1]):
        raise BadTrouble(
            f"{text[:40]!r} is not a bandwidth.",
            hint="Write a number with kbit, Mbit or Gbit, as in 50Mbit; 0 is no bound.",
        )
    return float(found[1]) * _FACTOR[found[2]]
