"""Publishes and follows a channel through whichever PoP is best, and says when that is another one.

    python examples/clients/carry_on.py .edgeflow                        # until Ctrl-C; meanwhile: edgeflow lab kill la
    python examples/clients/carry_on.py .edgeflow --count 5

The folder (or cluster.json) of a running cluster has the addresses and tokens of its PoPs. Each number is printed once, whatever happens to the PoPs.
"""

import argparse
import itertools
import logging
import threading
import time

from edgeflow import Client


def publish(client: Client, channel: str, count: int | None, pause_s: float) -> None:
    """Numbers, one after the other. Each call returns when its event is on disk at a PoP, which may be another one than before."""
    for number in itertools.count() if count is None else range(count):
        client.publish(channel, str(number), subject=str(number))
        time.sleep(pause_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cluster", help="the folder of a running cluster, or its cluster.json")
    parser.add_argument("--channel", default="examples/numbers")
    parser.add_argument("--count", type=int, help="stop after so many")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two numbers")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # where the client says that it moves
    with Client.connect(options.cluster) as client, client.subscribe(options.channel) as items:
        print(f"at {client.url}", flush=True)
        work = threading.Thread(
            target=publish, args=(client, options.channel, options.count, options.pause), daemon=True
        )
        work.start()
        for seen, item in enumerate(items, 1):
            print(f"{item.text()} from {item.origin}" if hasattr(item, "text") else f"gap: {item}", flush=True)
            if seen == options.count:
                break
        work.join()


if __name__ == "__main__":
    main()
