"""The link proxy with real sockets."""

import asyncio
import hashlib
import random
import socket
import time

import pytest

from edgeflow.host import wan
from edgeflow.host.linkfile import Link, carried_bytes, change_link, save_links
from edgeflow.host.ports import any_free

pytestmark = pytest.mark.alone


class Far:
    """The answering PoP: echoes, or swallows and counts."""

    def __init__(self, *, echo=True):
        self.echo = echo
        self.received = 0
        self.digest = hashlib.sha256()
        self.reading = asyncio.Event()
        self.reading.set()

    async def has_heard(self, count):
        deadline = time.monotonic() + 20
        while self.received < count:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def __call__(self, reader, writer):
        try:
            while True:
                await self.reading.wait()
                data = await reader.read(65536)
                if not data:
                    break
                self.received += len(data)
                self.digest.update(data)
                if self.echo:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def through_proxy(tmp_path, work, *, far=None, delay_ms=0.0, cut=False):
    """Run `work(config, connect, far)` with a proxy between."""

    async def run():
        end = far or Far()
        server = await asyncio.start_server(end, "127.0.0.1", 0)
        link = Link("a", "b", "127.0.0.1", any_free(), "127.0.0.1", server.sockets[0].getsockname()[1], delay_ms, cut)
        config = tmp_path / "wan.json"
        save_links(config, [link])
        stop = asyncio.Event()
        proxy_server = wan.Proxy(config)
        proxy = asyncio.create_task(proxy_server.run(stop))

        async def connect():
            for _ in range(100):
                try:
                    return await asyncio.open_connection("127.0.0.1", link.listen_port)
                except ConnectionError:
                    await asyncio.sleep(0.02)
            raise AssertionError("the proxy does not listen")

        try:
            await asyncio.wait_for(work(config, connect, end), 60)
            deadline = time.monotonic() + 5
            while proxy_server.open_sides():
                assert time.monotonic() < deadline, "connections that both ends have closed are still held"
                await asyncio.sleep(0.02)
        finally:
            stop.set()
            await asyncio.wait_for(proxy, 5)
            server.close()

    asyncio.run(run())


async def round_trip_ms(reader, writer, data=b"x"):
    began = time.perf_counter()
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), 10) == data
    return (time.perf_counter() - began) * 1000


def test_delay_applies_each_way_and_changes_while_it_runs(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        await round_trip_ms(reader, writer)
        assert min([await round_trip_ms(reader, writer) for _ in range(5)]) < 40
        await asyncio.to_thread(change_link, config, "a", "b", delay_ms=50)
        await until(lambda: round_trip_ms(reader, writer), lambda ms: ms >= 100)
        measured = [await round_trip_ms(reader, writer) for _ in range(5)]
        assert min(measured) >= 100
        assert min(measured) < 140
        await asyncio.to_thread(change_link, config, "a", "b", delay_ms=0)
        await until(lambda: round_trip_ms(reader, writer), lambda ms: ms < 40)
        writer.close()

    through_proxy(tmp_path, work)


async def until(measure, good):
    deadline = time.monotonic() + 5
    while not good(await measure()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_bytes_stay_in_order_while_the_delay_jumps(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        data = random.Random(1).randbytes(4_000_000)

        async def send():
            for start in range(0, len(data), 40_000):
                writer.write(data[start : start + 40_000])
                await writer.drain()
                if start % 400_000 == 0:
                    await asyncio.to_thread(
                        change_link, config, "a", "b", delay_ms=random.Random(start).choice([0, 5, 60])
                    )
                    await asyncio.sleep(0.05)

        sender = asyncio.create_task(send())
        assert await reader.readexactly(len(data)) == data
        await sender
        writer.close()

    through_proxy(tmp_path, work, delay_ms=30)


def test_cut_holds_back_and_heals_without_loss(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        await round_trip_ms(reader, writer)
        await asyncio.to_thread(change_link, config, "a", "b", cut=True)
        await asyncio.sleep(0.3)
        before = far.received
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        assert far.received == before
        late_reader, late_writer = await connect()  # a new connection gets no further either
        late_writer.write(b"late")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late_reader.read(1), 0.3)
        await asyncio.to_thread(change_link, config, "a", "b", cut=False)
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"held"
        assert await asyncio.wait_for(late_reader.readexactly(4), 5) == b"late"
        writer.close()
        late_writer.close()

    through_proxy(tmp_path, work)


def test_one_direction_is_cut_and_the_other_goes_on(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        await round_trip_ms(reader, writer)
        await asyncio.to_thread(change_link, config, "b", "a", cut=True, one_way=True)
        before = far.received
        writer.write(b"heard")
        await far.has_heard(before + 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        late_reader, late_writer = await connect()  # a new connection is heard, and hears nothing
        late_writer.write(b"late")
        await far.has_heard(before + 9)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late_reader.read(1), 0.3)
        await asyncio.to_thread(change_link, config, "a", "b", cut=False)
        assert await asyncio.wait_for(reader.readexactly(5), 20) == b"heard"
        assert await asyncio.wait_for(late_reader.readexactly(4), 20) == b"late"
        writer.close()
        late_writer.close()

    through_proxy(tmp_path, work)


def test_what_is_carried_is_counted_in_each_direction_over_restarts_of_the_proxy(tmp_path):
    async def work(config, connect, far):
        far.echo = False
        _, writer = await connect()
        writer.write(b"x" * 1000)
        wanted = 1000 + sum(before.values())
        deadline = time.monotonic() + 20
        while carried_bytes(config) != {("a", "b"): wanted, ("b", "a"): 0}:
            assert time.monotonic() < deadline, carried_bytes(config)
            await asyncio.sleep(0.02)
        writer.close()

    for _ in range(2):
        before = carried_bytes(tmp_path / "wan.json")
        through_proxy(tmp_path, work)
    assert sum(before.values()) == 1000


def test_a_narrow_line_carries_so_much_a_second_and_no_more(tmp_path):
    async def work(config, connect, far):
        await asyncio.to_thread(change_link, config, "a", "b", kbit_s=4000)
        pairs = [await connect() for _ in range(2)]
        data = random.Random(3).randbytes(250_000)
        await until(lambda: round_trip_ms(*pairs[0], b"y" * 100_000), lambda ms: ms > 150)
        began = time.perf_counter()

        async def echo(reader, writer):
            writer.write(data)
            assert await asyncio.wait_for(reader.readexactly(len(data)), 20) == data

        await asyncio.gather(*(echo(*pair) for pair in pairs))
        took = time.perf_counter() - began
        assert 0.95 < took < 2.5  # 500,000 bytes at 500,000 a second, and back at the same time
        await asyncio.to_thread(change_link, config, "a", "b", kbit_s=0)
        await until(lambda: round_trip_ms(*pairs[0], data), lambda ms: ms < 400)
        for _, writer in pairs:
            writer.close()

    through_proxy(tmp_path, work)


def test_slow_receiver_slows_the_sender_down(tmp_path, monkeypatch):
    monkeypatch.setattr(wan, "QUEUE_BYTES", 1 << 20)
    far = Far(echo=False)

    async def work(config, connect, far):
        far.reading.clear()
        _, writer = await connect()
        writer.transport.set_write_buffer_limits(high=65536)
        sent = 0
        chunk = b"x" * 65536
        with pytest.raises(TimeoutError):
            while sent < 200 << 20:
                writer.write(chunk)
                sent += len(chunk)
                await asyncio.wait_for(writer.drain(), 1.0)
        assert sent < 40 << 20  # socket buffers and the queue, not all of it
        far.reading.set()
        await writer.drain()
        writer.write_eof()
        deadline = time.monotonic() + 20
        while far.received < sent:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        writer.close()

    through_proxy(tmp_path, work, far=far)


def test_end_of_one_direction_leaves_the_other(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        writer.write(b"last words")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b"last words"
        writer.close()

    through_proxy(tmp_path, work, delay_ms=20)


def test_broken_connection_does_not_disturb_the_next(tmp_path):
    async def work(config, connect, far):
        _, writer = await connect()
        writer.write(b"x" * 1000)
        writer.transport.abort()
        reader, writer = await connect()
        await round_trip_ms(reader, writer)
        writer.close()

    through_proxy(tmp_path, work)


def test_half_written_control_document_changes_nothing(tmp_path):
    async def work(config, connect, far):
        reader, writer = await connect()
        whole = config.read_text()
        config.write_text(whole[: len(whole) // 2])
        await asyncio.sleep(0.3)
        assert await round_trip_ms(reader, writer) < 1000
        config.write_text(whole.replace('"delay_ms": 0.0', '"delay_ms": 40'))
        await until(lambda: round_trip_ms(reader, writer), lambda ms: ms >= 80)
        writer.close()

    through_proxy(tmp_path, work)


def test_taken_port_is_an_error_that_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "wan.json"
        save_links(config, [Link("a", "b", "127.0.0.1", taken.getsockname()[1], "127.0.0.1", 1)])
        assert wan.main(["--config", str(config)]) == 1
