"""Large bodies through the API process of a PoP: in constant memory, all or nothing, checked on the way in and out."""

import base64
import concurrent.futures
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from link_pops import RedisServer, free_port, make_settings

from edgeflow.settings import PopSettings

Wait = Callable[..., Any]
MIB = 1024 * 1024
LARGE = 200 * MIB
GROWTH = 48 * MIB
"""What the process may grow by while LARGE goes through it: a few MiB of pieces, buffers and threads, and a margin."""
TOKEN = "test-token"


class ApiProcess:
    """`python -m edgeflow.api` over its own Redis, without a data process."""

    def __init__(self, folder: Path) -> None:
        base = make_settings(folder, "a", {"a": free_port()})
        token = folder / "token"
        token.write_text(TOKEN)
        self.settings = PopSettings.model_validate({
            **base.model_dump(), "api": {"port": free_port(), "token_file": token},
        })  # fmt: skip
        config = folder / "pop.json"
        config.write_text(self.settings.model_dump_json())
        self.redis = RedisServer(folder / "a" / "redis", self.settings.store.redis_socket).start()
        self._log = (folder / "api.log").open("wb")
        self.process = subprocess.Popen([sys.executable, "-m", "edgeflow.api", "--config", config], stderr=self._log)
        self.url = f"http://127.0.0.1:{self.settings.api.port}"
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def files(self) -> list[Path]:
        """Every file below the folder of bodies."""
        folder = self.settings.state_dir / "blobs"
        return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]

    def peak_bytes(self) -> int:
        """The most memory that the process had at once since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def forget_peak(self) -> int:
        """The peak is what it has now, which is returned."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.peak_bytes()

    def stop(self) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.redis.kill()
        self._log.close()


@pytest.fixture(scope="module")
def api(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    process = ApiProcess(tmp_path_factory.mktemp("p"))
    yield process
    process.stop()


@pytest.fixture(autouse=True)
def ready(api: ApiProcess, wait_until: Wait) -> None:
    wait_until(api.is_ready, "the API answers", 30)


def large_body(seed: int, size: int = LARGE) -> Iterator[bytes]:
    """Random bytes, the same for the same seed, never all in memory."""
    chance = random.Random(seed)
    for at in range(0, size, MIB):
        yield chance.randbytes(min(MIB, size - at))


def repr_digest(raw: bytes) -> str:
    return f"sha-256=:{base64.b64encode(raw).decode()}:"


def test_200_mib_go_in_and_out_in_constant_memory(api: ApiProcess) -> None:
    expected = hashlib.sha256()
    for piece in large_body(1):
        expected.update(piece)
    api.http.put("/v1/ekv/large/warm", content=b"x" * MIB).raise_for_status()
    before = api.forget_peak()
    put = api.http.put(
        "/v1/ekv/large/model", content=large_body(1), headers={"Repr-Digest": repr_digest(expected.digest())}
    )
    assert put.status_code == 200, put.text
    grown_in = api.peak_bytes() - before

    before = api.forget_peak()
    for path in ("/v1/ekv/large/model", f"/v1/blobs/large/sha256:{expected.hexdigest()}"):
        came, size = hashlib.sha256(), 0
        with api.http.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert int(answer.headers["Content-Length"]) == LARGE
            for piece in answer.iter_bytes(MIB):
                came.update(piece)
                size += len(piece)
        assert (size, came.digest()) == (LARGE, expected.digest())
    grown_out = api.peak_bytes() - before
    print(
        f"API process: grew by {grown_in / MIB:.1f} MiB while {LARGE // MIB} MiB came in, {grown_out / MIB:.1f} MiB out"
    )
    assert grown_in < GROWTH
    assert grown_out < GROWTH


def test_several_at_once_are_bounded_too(api: ApiProcess) -> None:
    api.http.put("/v1/ekv/large/warm", content=b"x" * MIB).raise_for_status()
    before = api.forget_peak()

    def put(number: int) -> int:
        with httpx.Client(base_url=api.url, headers=api.http.headers, timeout=120) as http:
            return http.put(f"/v1/ekv/large/at-once-{number}", content=large_body(number, 50 * MIB)).status_code

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert set(pool.map(put, range(6))) == {200}
    assert api.peak_bytes() - before < 2 * GROWTH


def test_an_upload_that_is_cut_leaves_nothing(api: ApiProcess, wait_until: Wait) -> None:
    before = set(api.files())
    for size in (3 * MIB, 20 * MIB):
        with socket.create_connection(("127.0.0.1", api.settings.api.port)) as sock:
            sock.sendall(
                f"PUT /v1/ekv/large/cut HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {30 * MIB}\r\n\r\n".encode()
            )
            for piece in large_body(7, size):
                sock.sendall(piece)
    wait_until(lambda: set(api.files()) == before, "no file is left of it", 20)
    assert api.http.get("/v1/ekv/large/cut").status_code == 404


@pytest.mark.parametrize("size", [1000, 500_000, 20 * MIB])
def test_another_digest_than_announced_is_refused_by_name_and_nothing_is_kept(api: ApiProcess, size: int) -> None:
    before = set(api.files())
    for name in ("Repr-Digest", "Content-Digest"):
        answer = api.http.put(
            "/v1/ekv/large/wrong", content=large_body(9, size), headers={name: repr_digest(hashlib.sha256(b"other").digest())}
        )  # fmt: skip
        assert (answer.status_code, answer.json()["code"]) == (400, "digest-mismatch")
    broken = api.http.put("/v1/ekv/large/wrong", content=b"x", headers={"Repr-Digest": "sha-256=:AAAA:"})
    assert (broken.status_code, broken.json()["code"]) == (400, "digest-mismatch")
    assert set(api.files()) == before
    assert api.http.get("/v1/ekv/large/wrong").status_code == 404


def test_a_digest_of_another_algorithm_is_not_looked_at(api: ApiProcess) -> None:
    header = "sha-512=:AAAA:, " + repr_digest(hashlib.sha256(b"x").digest())
    assert api.http.put("/v1/ekv/large/two", content=b"x", headers={"Repr-Digest": header}).status_code == 200
    assert api.http.put("/v1/ekv/large/two", content=b"x", headers={"Repr-Digest": "md5=:AAAA:"}).status_code == 200


def test_more_than_the_limit_is_refused_with_and_without_a_length(api: ApiProcess) -> None:
    before = set(api.files())
    limit = api.settings.limits.value_bytes
    answer = api.http.put("/v1/ekv/large/more", content=large_body(3, limit + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    with socket.create_connection(("127.0.0.1", api.settings.api.port)) as sock:
        sock.sendall(
            f"PUT /v1/ekv/large/more HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {limit + 1}\r\n\r\n".encode()
        )
        assert b" 413 " in sock.recv(4096).split(b"\r\n")[0]
    assert set(api.files()) == before


@pytest.mark.parametrize(
    ("path", "status"), [("large/_mine", 403), ("system/x", 403), ("Large/x", 400), ("large/" + "k" * 600, 400)]
)
def test_what_may_not_be_written_is_refused_before_the_body(api: ApiProcess, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", api.settings.api.port), timeout=10) as sock:
        sock.sendall(
            f"PUT /v1/ekv/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {100 * MIB}\r\n\r\n".encode()
        )
        assert f" {status} ".encode() in sock.recv(4096).split(b"\r\n")[0]


def test_the_same_body_under_two_keys_is_one_file(api: ApiProcess) -> None:
    api.http.put("/v1/ekv/large/one", content=large_body(5, 8 * MIB)).raise_for_status()
    files = set(api.files())
    api.http.put("/v1/ekv/large/two", content=large_body(5, 8 * MIB)).raise_for_status()
    assert set(api.files()) == files


def test_ranges_of_a_body(api: ApiProcess) -> None:
    data = b"".join(large_body(11, 3 * MIB + 5))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    api.http.put("/v1/ekv/large/ranges", content=data).raise_for_status()
    path = f"/v1/blobs/large/{digest}"
    for header, part in (
        ("bytes=0-9", data[:10]), ("bytes=65535-65536", data[65535:65537]), (f"bytes={3 * MIB}-", data[3 * MIB :]), ("bytes=-7", data[-7:]),
        ("bytes=1000000-3000000", data[1_000_000:3_000_001]),
    ):  # fmt: skip
        answer = api.http.get(path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["Content-Range"].endswith(f"/{len(data)}")
        assert answer.headers["Repr-Digest"] == repr_digest(hashlib.sha256(data).digest())
    behind = api.http.get(path, headers={"Range": f"bytes={len(data)}-"})
    assert (behind.status_code, behind.json()["code"]) == (416, "bad-range")
    assert api.http.head(path).headers["Content-Length"] == str(len(data))


def test_a_damaged_body_is_not_sent_and_one_that_is_put_again_is(api: ApiProcess) -> None:
    data = b"".join(large_body(13, 2 * MIB))
    digest = hashlib.sha256(data).hexdigest()
    api.http.put("/v1/ekv/large/damaged", content=data).raise_for_status()
    path = api.settings.state_dir / "blobs" / "large" / digest[:2] / digest
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(16))
    answer = api.http.get(f"/v1/blobs/large/sha256:{digest}")
    assert (answer.status_code, answer.json()["code"]) in ((503, "corrupt-blob"), (503, "body-missing"))
    assert answer.headers["Retry-After"]
    api.http.put("/v1/ekv/large/again", content=data).raise_for_status()
    assert api.http.get(f"/v1/blobs/large/sha256:{digest}").content == data
