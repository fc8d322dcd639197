"""How fast the SDK's runtime is by itself: a real instance process against an agent that answers at once and does nothing else.

What it is: the SDK's own ceiling, to show that it is not what bounds a pipeline. What it is not: a measure of edgeflow.
Run: `python -m bench.sdk`; prints a table.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeflow.core.events import Event
from edgeflow.core.wire import FrameReader, encode_frame

HANDLER = """
from edgeflow import function

@function
def handle(ctx, frames):
    return frames.data
"""


def cpu_time_s(pid: int) -> float:
    """User and system time of a process so far: what an event costs whatever else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(seconds: float, limit: int) -> dict[str, Any]:
    """Events per second with claims answered in full up to `limit`, and round-trip times of single invocations in microseconds when it is 1."""
    attributes = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "demo": "x" * 20}
    event = Event(
        "vision/frames",
        "0123456789abcdef",
        "la/gateway",
        "edgeflow.message",
        1_700_000_000_000,
        data=b"x" * 100,
        subject="clip/1",
        attributes=attributes,
    )
    stored = event.at("la", 1, 1, 0, 0).encode_positioned()
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        (Path(folder) / "handler.py").write_text(HANDLER)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{folder}/s")
        listener.listen(1)
        environment = {**os.environ, "EDGEFLOW_SOCKET": f"{folder}/s", "EDGEFLOW_HANDLER": folder}
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeflow.sdk.runtime"], env=environment, stderr=subprocess.DEVNULL
        )
        sock, _ = listener.accept()
        reader = FrameReader()
        done, number, trips = 0, 0, []
        cpu_s = 0.0
        started_s = sent_s = time.perf_counter()
        warm = False
        while True:
            answers: list[bytes] = []
            for message in reader.feed(sock.recv(1 << 20)):
                kind = message["t"]
                if kind == "hello":
                    welcome = {
                        "t": "welcome",
                        "protocol": 1,
                        "namespace": "vision",
                        "function": "f",
                        "revision": "r",
                        "instance": "i",
                        "pop": "la",
                    }
                    welcome |= {
                        "inputs": [{"name": "frames", "channel": "vision/frames"}],
                        "join": None,
                        "publish": ["vision/out"],
                        "context": {},
                    }
                    answers.append(encode_frame({**welcome, "timeout_ms": 30_000}))
                elif kind == "commit":
                    done += 1
                    if warm:
                        trips.append((time.perf_counter() - sent_s) * 1e6)
                    answers.append(
                        encode_frame(
                            {
                                "t": "committed",
                                "invocation": message["invocation"],
                                "attempt": 1,
                                "status": "committed",
                                "error": None,
                            }
                        )
                    )
                elif kind == "claim":
                    items = []
                    for _ in range(min(limit, message["max"])):
                        number += 1
                        inputs = [{"name": "frames", "event": stored}]
                        deadline_ms = int(time.time() * 1000) + 30_000
                        items.append(
                            {
                                "invocation": f"{number:032x}",
                                "attempt": 1,
                                "deadline_ms": deadline_ms,
                                "inputs": inputs,
                                "context": {},
                            }
                        )
                    answers.append(encode_frame({"t": "work", "items": items}))
            now_s = time.perf_counter()
            if not warm and done >= 500:
                cpu_s = cpu_time_s(process.pid)
                warm, started_s, done, trips = True, now_s, 0, []
            if warm and now_s - started_s > seconds:
                break
            sent_s = time.perf_counter()
            if answers:
                sock.sendall(b"".join(answers))
        cpu_s = cpu_time_s(process.pid) - cpu_s
        sock.close()
        process.terminate()
        process.wait(10)
        listener.close()
    return {
        "claimed_at_once": limit,
        "events_per_s": round(done / (now_s - started_s)),
        "instance_cpu_us": round(cpu_s / done * 1e6, 1),
        "p50_us": round(statistics.median(trips), 1) if limit == 1 else None,
    }


if __name__ == "__main__":
    results = [measure(3.0, limit) for limit in (1, 8, 64)]
    print("claimed at once   events/s   CPU per event in the instance   p50 round trip")
    for row in results:
        trip = f"{row['p50_us']:.0f} us" if row["p50_us"] is not None else ""
        print(
            f"{row['claimed_at_once']:>15}   {row['events_per_s']:>8,}   {row['instance_cpu_us']:>26.1f} us   {trip:>14}"
        )
    print(json.dumps(results))
