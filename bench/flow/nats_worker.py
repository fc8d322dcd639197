"""A NATS worker: what one durable function does, written with nats-py the way one would.

What it is: `python -m bench.flow.nats_worker`; its parameters are one line of JSON on stdin, it prints a line once it is ready. It fetches messages of a
durable pull consumer, puts a value if asked to, publishes the result to the stream of results, waits for that to be stored, then acknowledges.
What must stay true: each result has an id that follows from its message (`Nats-Msg-Id`), so that the result of a message that is delivered again is stored
once; the messages of one fetch are worked on at the same time, because one after the other a worker waits for the server four times a message.
"""

import asyncio
import json
import sys
import uuid
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingThere

from bench.flow.functions import VALUES
from bench.flow.nats_server import BUCKET, MESSAGE_ID

FETCH = 64
WAIT_S = 10.0


async def serve(url: str, stream: str, durable: str, publish: str, keep: bool) -> None:
    """Work for ever."""
    client = await nats.connect(url)
    stored = client.jetstream()
    values = await stored.key_value(BUCKET) if keep else None
    messages = await stored.pull_subscribe_bind(consumer=durable, stream=stream)

    async def work(message: Msg) -> None:
        if values is not None:
            await values.put(f"last.{message.data[-1] % VALUES}", message.data)
        headers = dict(message.headers or {})
        headers["ce-id"] = uuid.uuid5(uuid.NAMESPACE_OID, durable + headers["ce-id"]).hex
        headers[MESSAGE_ID] = headers["ce-id"]
        await stored.publish(publish, message.data, headers=headers)
        await message.ack()

    print("ready", flush=True)
    size = 1
    while True:
        try:
            batch = await messages.fetch(size, timeout=WAIT_S)
        except NothingThere:
            continue
        await asyncio.gather(*(work(message) for message in batch))
        # A fetch of many waits for many, so as many are asked for as the server says are there.
        size = min(FETCH, max(1, batch[-1].metadata.num_pending))


def main() -> None:
    """The process."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    asyncio.run(serve(**asked))


if __name__ == "__main__":
    main()
