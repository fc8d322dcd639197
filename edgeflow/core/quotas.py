"""Quotas as people write them: a number, or a size with its unit, also per second.

What it is: the reading of `quota:` in a file and of the options of `edgeflow quota set` into the fields of the API.
What it is not: the buckets (the store's scripts), or where a quota is kept (edgeflow.store).
What must stay true: a field that there is not is refused by name.
"""

import re
from collections.abc import Mapping

from edgeflow.errors import BadQuota

FIELDS = {
    "events_per_s": "events_per_s",
    "bytes_per_s": "bytes_per_s",
    "burst_s": "burst_s",
    "link_rate": "link_bytes_per_s",
}
"""Fields as they are written, and as the API calls them."""
DEFAULT_BURST_S = 2.0
SIZES = frozenset({"bytes_per_s", "link_rate"})
MIN_LINK_RATE = 100_000
"""Bytes a second: below it the pieces of large bodies would lie so far apart that peers take them for lost."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(k|M|G|Ki|Mi|Gi)?(?:B)?(?:/s)?")
_FACTORS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size_per_s(text: str) -> float:
    """Bytes a second: 500000, 500k, 2M, 512Ki, 5MB/s. Raises BadQuota."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise BadQuota(
            f"{text[:40]!r} is not a size per second; write a number with k, M, G, Ki, Mi or Gi, as in 5MB/s"
        )
    return float(found[1]) * _FACTORS[found[2]]


def parse_quota(document: object) -> dict[str, float]:
    """A quota as the API takes it. Raises BadQuota that names the field."""
    if not isinstance(document, Mapping):
        raise BadQuota(f"a quota is a map of {', '.join(FIELDS)}")
    found: dict[str, float] = {}
    for name, value in document.items():
        if name not in FIELDS:
            raise BadQuota(f"a quota has no field {str(name)[:40]!r}; there are {', '.join(FIELDS)}")
        if value is None:
            continue
        if name in SIZES and isinstance(value, str):
            number = size_per_s(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
        else:
            raise BadQuota(f"the quota's {name} is {str(value)[:40]!r}, which is not a number")
        if not 0 < number <= 1e12:
            raise BadQuota(f"the quota's {name} is {number:g}; it is above 0 and at most 10^12")
        if name == "link_rate" and number < MIN_LINK_RATE:
            raise BadQuota(f"the quota's link_rate is {number:g}; it is at least {MIN_LINK_RATE} bytes a second (100k)")
        found[FIELDS[name]] = number
    if not set(found) - {"burst_s"}:
        bounds = [name for name in FIELDS if name != "burst_s"]
        raise BadQuota(f"a quota bounds something: give {', '.join(bounds[:-1])} or {bounds[-1]}")
    return found


def written_quota(quota: Mapping[str, float | None]) -> dict[str, float]:
    """A quota of the API as `parse_quota` reads it."""
    named = {api: name for name, api in FIELDS.items()}
    return {named[api]: value for api, value in quota.items() if api in named and value is not None}
