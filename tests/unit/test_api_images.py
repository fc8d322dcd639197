"""`/v1/images` over a store in memory: what is taken, shown, refused and removed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from api_fakes import TOKEN, FakeStore, make_api, served
from image_archives import docker_archive, layer
from test_api_routes import check_problem

from edgeflow.api.context import Api
from edgeflow.cli import apply
from edgeflow.cli import images as commands
from edgeflow.core.manifest import Artifact, parse, resolve, revision_of
from edgeflow.runner import images as engine_side
from edgeflow.runner.archives import BytesSource, look
from edgeflow.runner.pins import pin

LIMIT = 6_000_000
LAYERS = [layer({"base": b"x" * 20_000}), layer({"app": b"y" * 900})]
MANIFEST = "namespace: vision\nfunctions: {f: {image: 'vision/f:1', subscribe: a, place: {pops: [chicago]}}}"


@pytest.fixture(scope="module")
def served_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, str]]:
    api = make_api(tmp_path_factory.mktemp("api"), image_bytes=LIMIT, disk_free_bytes=1)
    with served(api) as url:
        yield api, url


@pytest.fixture
def api(served_api: tuple[Api, str]) -> Iterator[Api]:
    api = served_api[0]
    api.store = FakeStore()  # type: ignore[assignment]
    yield api
    api.images, api.images_under_way = None, 0


@pytest.fixture
def http(served_api: tuple[Api, str], api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=served_api[1], headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=False
    ) as client:
        yield client


def push(http: httpx.Client, data: bytes, *names: str) -> Any:
    return http.post("/v1/images", content=data, params={"name": list(names)})


def keys(api: Api, prefix: str) -> list[str]:
    return [info.key for info in api.store.namespace("system").list(prefix, limit=1000)]


def test_an_image_is_pushed_listed_and_removed(http: httpx.Client, api: Api) -> None:
    answer = push(http, docker_archive(LAYERS, "vision/f:1"), "vision/f:latest")
    assert answer.status_code == 201
    image = answer.json()
    assert image["names"] == ["vision/f:latest", "vision/f:1"] and image["layers"] == 2
    assert image["size"] == sum(map(len, LAYERS)) and image["here"] == image["stored"] > 0
    assert image["loaded"] is None and "no container engine" in image["note"]
    assert push(http, docker_archive(LAYERS)).status_code == 200
    hex_id = image["id"].removeprefix("sha256:")
    for id in (image["id"], hex_id):
        assert http.get(f"/v1/images/{id}").json()["id"] == image["id"]
    assert [one["id"] for one in http.get("/v1/images").json()["items"]] == [image["id"]]
    assert http.post(f"/v1/images/{hex_id}/load").json()["here"] == image["stored"]
    assert http.delete(f"/v1/images/{hex_id}").status_code == 204
    assert http.get("/v1/images").json() == {"items": []} and keys(api, "pieces/"), "pieces go later"
    check_problem(http.delete(f"/v1/images/{hex_id}"), 404, "not-found")
    check_problem(http.post(f"/v1/images/{hex_id}/load"), 404, "not-found")


def test_a_large_archive_is_streamed(http: httpx.Client) -> None:
    """Above 4 MiB the upload is not held in memory."""
    data = docker_archive([layer({"base": bytes(5_000_000)})], "vision/large:1")
    assert push(http, data).status_code == 201
    assert http.get("/v1/images").json()["items"][0]["names"] == ["vision/large:1"]


def test_an_image_that_a_function_is_made_from_stays(http: httpx.Client) -> None:
    image = push(http, docker_archive(LAYERS, "vision/f:1")).json()
    manifest = resolve(parse(MANIFEST), {}, applied_ms=1)
    answer = http.put("/v1/functions/vision", json=manifest)
    assert answer.status_code == 201
    stored = http.get("/v1/functions/vision").json()["functions"]["f"]
    assert stored["image_id"] == image["id"] and stored["revision"] == answer.json()["revisions"]["f"] == revision_of(
        stored
    )
    problem = check_problem(http.delete(f"/v1/images/{image['id']}"), 409, "image-in-use")
    assert "vision/f" in problem["detail"]
    assert http.get("/v1/images").json()["items"][0]["used_by"] == ["vision/f"]
    assert http.put("/v1/functions/vision", json=manifest).json()["status"] == "unchanged"


def test_a_moved_tag_is_a_new_revision_when_it_is_applied_again(http: httpx.Client) -> None:
    first = push(http, docker_archive(LAYERS, "vision/f:1")).json()
    manifest = resolve(parse(MANIFEST), {}, applied_ms=1)
    before = http.put("/v1/functions/vision", json=manifest).json()
    second = push(http, docker_archive([*LAYERS, layer({"more": b"z"})], "vision/f:1")).json()
    assert http.get("/v1/functions/vision").json()["functions"]["f"]["image_id"] == first["id"]
    assert {one["id"]: one["names"] for one in http.get("/v1/images").json()["items"]} == {
        first["id"]: [],
        second["id"]: ["vision/f:1"],
    }
    after = http.put("/v1/functions/vision", json=manifest).json()
    assert after["status"] == "updated" and after["revisions"] != before["revisions"]
    assert http.get("/v1/functions/vision").json()["functions"]["f"]["image_id"] == second["id"]


def test_pinning_leaves_what_it_does_not_know() -> None:
    document = resolve(parse(MANIFEST), {"f": Artifact(bundle="a" * 64)}, applied_ms=1)
    assert pin(document, lambda _name: "sha256:" + "0" * 64) == document
    document = resolve(parse(MANIFEST), {}, applied_ms=1)
    assert pin(document, lambda _name: None) == document
    pinned = pin(document, {"vision/f:1": "sha256:" + "1" * 64}.get)
    assert pin(pinned, lambda _name: "sha256:" + "2" * 64) == pinned


def test_what_is_not_an_image_leaves_nothing(http: httpx.Client, api: Api) -> None:
    check_problem(push(http, b"rubbish"), 400, "bad-image")
    check_problem(push(http, b""), 400, "bad-image")
    check_problem(push(http, docker_archive(LAYERS)[:20_000]), 400, "bad-image")
    check_problem(push(http, docker_archive(LAYERS), "Bad Name"), 400, "bad-image")
    spoilt = docker_archive(LAYERS).replace(b"xxxx", b"xyxx", 1)
    check_problem(push(http, spoilt), 400, "bad-image")
    check_problem(
        http.post("/v1/images", content=docker_archive(LAYERS), headers={"Repr-Digest": "sha-256=:AAAA:"}),
        400,
        "digest-mismatch",
    )
    check_problem(http.get("/v1/images/../../etc"), 404, "not-found")
    check_problem(http.get("/v1/images/zz"), 400, "bad-request")
    assert keys(api, "images/") == []


def test_what_is_too_large_is_refused(http: httpx.Client) -> None:
    problem = check_problem(push(http, bytes(LIMIT + 1)), 413, "too-large")
    assert str(LIMIT) in problem["detail"]


def test_a_disk_without_room_for_it_is_507(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    data = docker_archive(LAYERS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=len(data)))
    check_problem(push(http, data), 507, "store-full")


def test_more_than_two_at_a_time_are_refused(http: httpx.Client, api: Api) -> None:
    api.images_under_way = 2
    answer = push(http, docker_archive(LAYERS))
    check_problem(answer, 503, "busy")
    assert answer.headers["retry-after"] and api.images_under_way == 2


def test_an_image_whose_value_is_damaged_is_left_out(http: httpx.Client, api: Api) -> None:
    good = push(http, docker_archive(LAYERS)).json()
    system = api.store.namespace("system")
    for key, data in {"a" * 64: b"{", "b" * 64: b"[]", "c" * 64: json.dumps({**json.loads(system.get(f"images/{good['id'][7:]}").data), "id": "sha256:" + "c" * 64}).encode()}.items():  # type: ignore[union-attr]  # fmt: skip
        system.put(f"images/{key}", data)
    assert [one["id"] for one in http.get("/v1/images").json()["items"]] == [good["id"]]
    check_problem(http.get(f"/v1/images/{'a' * 64}"), 404, "not-found")


def test_an_engine_that_is_away_is_said_and_no_error(http: httpx.Client, api: Api) -> None:
    from edgeflow.errors import Unavailable

    class Away:
        def has(self, _id: str) -> bool:
            raise Unavailable("the Docker engine is not reachable")

    push(http, docker_archive(LAYERS))
    api.images = Away()  # type: ignore[assignment]
    (image,) = http.get("/v1/images").json()["items"]
    assert image["loaded"] is None and image["note"] == "the Docker engine is not reachable"


def test_apply_pushes_what_the_cluster_lacks(
    served_api: tuple[Api, str], api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgeflow apply` beside an engine that is not the PoP's: the image goes with the manifest, once."""
    archive = docker_archive(LAYERS, "edgeflow/vision-f:abc")
    id = look(BytesSource(archive)).id
    monkeypatch.setattr(apply, "_engine", lambda _say: "an engine")
    monkeypatch.setattr(engine_side, "build_image", lambda *_args, **_more: "edgeflow/vision-f:abc")
    monkeypatch.setattr(engine_side, "find_image", lambda _engine, _name: id)
    monkeypatch.setattr(commands, "saved", lambda _id: lambda: iter([archive[:9000], archive[9000:]]))
    monkeypatch.setattr(api, "settings", api.settings.model_copy(update={"mode": "docker"}))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "Dockerfile").write_text("FROM scratch\n")
    file = tmp_path / "edgeflow.yaml"
    file.write_text("namespace: vision\nfunctions: {f: {build: ./f, subscribe: a, place: {pops: [chicago]}}}\n")
    lines: list[str] = []
    target = apply.Target(served_api[1], TOKEN)
    assert apply.apply_file(file, target, wait=False, say=lines.append).status == "created"
    assert f"pushing image {id[7:19]}, which the cluster does not have" in lines
    assert keys(api, "images/") == [f"images/{id[7:]}"]
    lines.clear()
    assert apply.apply_file(file, target, wait=False, say=lines.append).status == "unchanged"
    assert not any("pushing" in line for line in lines)
    monkeypatch.setattr(engine_side, "find_image", lambda _engine, _name: "sha256:" + "0" * 64)
    with pytest.raises(apply.NotApplied, match="names images in another way"):
        apply.apply_file(file, target, wait=False, say=lines.append)
