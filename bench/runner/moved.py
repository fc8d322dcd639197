"""What an image costs between two PoPs: the bytes that a second image on the same base moves; and the memory of the agent.

What it is: two made images, pushed at one PoP and asked for at the other, and readings of /proc. It needs no engine: a PoP of embedded mode fetches images, too.
What must stay true: what moved is what the other PoP has after it and had not before, as the PoP itself counts its pieces (deflated).
"""

import os
import time
from typing import Any

from bench.archives import docker_archive, tar
from bench.machine import memory_mib, usage, used
from bench.runner.world import Failed, World, until
from edgeflow.cli.admin import Operator
from edgeflow.host.local import ProcessName

MIB_IN_MB = 2**20 / 1e6
PROCESSES: tuple[ProcessName, ...] = ("data", "control", "broker", "redis")


def images(world: World, other: str, base_bytes: int, own_bytes: int) -> dict[str, Any]:
    """Push two images at the measured PoP, have each at `other`; bytes that came there."""
    base = tar({"base": os.urandom(base_bytes)})
    access = world.cluster.pop(other)
    moved, took_s = [], []
    with Operator(access.api_url, access.token) as there:
        for name in ("bench/one:1", "bench/two:1"):
            data = docker_archive([base, tar({"own": os.urandom(own_bytes)})], name)
            pushed = world.client.push_image(lambda data=data: iter([data]), [], len(data))  # type: ignore[misc]
            before = until(lambda pushed=pushed: there.image(pushed["id"]), "the image is known at the other PoP")  # type: ignore[misc]
            started_s = time.monotonic()
            after = there.load_image(pushed["id"])
            took_s.append(round(time.monotonic() - started_s, 2))
            if after["here"] != after["stored"]:
                raise Failed(f"{other} has {after['here']} of {after['stored']} bytes of an image.")
            moved.append(after["here"] - before["here"])
    return {
        "base_bytes": base_bytes, "own_bytes": own_bytes, "first_bytes": moved[0], "second_bytes": moved[1],
        "second_percent": round(100 * moved[1] / moved[0], 2), "took_s": took_s,
    }  # fmt: skip


def agent_memory(world: World, pops: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Of each PoP, with nothing applied: its two agent processes (MB, and the share of a core), and for comparison its broker and store."""
    pids = {f"{pop}/{name}": int(world.cluster.pid(pop, name) or 0) for pop in pops for name in PROCESSES}
    before = usage(pids)
    time.sleep(seconds)
    after = usage(pids)
    spent = used(before, after)
    found: dict[str, Any] = {}
    for pop in pops:
        entry: dict[str, Any] = {}
        for name in PROCESSES:
            read = memory_mib(pids[f"{pop}/{name}"])
            entry[name] = {f"{what}_mb": round(mib * MIB_IN_MB, 1) for what, mib in read.items()}
            entry[name]["core_percent"] = round(100 * spent[f"{pop}/{name}"] / (after.at_s - before.at_s), 2)
        for what in ("rss_mb", "pss_mb"):
            if what in entry["data"] and what in entry["control"]:
                entry[what] = round(entry["data"][what] + entry["control"][what], 1)
        found[pop] = entry
    return found
