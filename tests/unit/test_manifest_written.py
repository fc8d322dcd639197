"""A resolved manifest, written down, is the same when it is applied again."""

from typing import Any

import pytest
import yaml

from edgeflow.core.manifest import Artifact, parse, resolve
from edgeflow.core.manifest_written import written
from edgeflow.errors import BadManifest

HEX = "ab" * 32
FUNCTIONS = {
    "one channel": "subscribe: frames",
    "captures": "subscribe: cam/{id}/frames, publish: cam/{id}/out",
    "a name of its own, where": "subscribe: {channel: cam/left-eye, as: eye, where: \"data.size > `10`\"}",
    "several": "subscribe: [frames, {channel: cam/+/alerts, as: alert}, _dead/g]",
    "direct": "subscribe: {channel: frames, qos: 0}, publish: out",
    "a join": "subscribe: {join: [frames, faces], by: data.id, within: 90s, on_timeout: partial, duplicates: all, max_pending: 7}",
    "where of a join": "subscribe: {join: [frames, {channel: faces, where: \"level == 'x'\"}], where: \"type == 'y'\"}",
    "any": "subscribe: {join: {any: [a, b]}, by: subject, within: 5m}",
    "k of": "subscribe: {join: {k: 2, of: [a, b, c]}, on_timeout: drop}",
    "the first of k, partial": "subscribe: {join: {k: 1, of: [a, b, c]}, on_timeout: partial}",
    "collect": "subscribe: {join: {collect: total}, channel: x, as: items, by: chunk}",
    "collect a number": "subscribe: {join: {collect: 5}, channel: 'x/{n}/y', by: captures.n}",
    "tumbling": "subscribe: {join: {tumbling: 1500ms}, channel: x, by: subject, lateness: 3s, idle: 1s}",
    "sliding": "subscribe: {join: {sliding: 10s, every: 2s}, channel: x, by: subject, on_timeout: drop}",
    "session": "subscribe: {join: {session: 30s}, channel: x, by: subject}",
    "side inputs": "subscribe: cam/{id}/frames, latest: [settings, {channel: 'calibration/{id}', as: calibration, by: captures.id}]",
    "state": "subscribe: a, state: {by: subject}",
    "ordered": "subscribe: a, ordered: true",
    "the rest": "subscribe: a, publish: [b, c/+], context: {model: models/m}, env: {A: '1'}, retry: {attempts: 2, backoff: 1s, timeout: 2h}, "
    "limits: {cpus: 0.5, memory: 1Gi, pids: 99, tmpfs: 1Mi, log: 1Mi, outputs: 3, output_bytes: 1M}, network: egress, gpus: all, "
    "secrets: [key], rollout: {deadline: 5m}, scale: {min: 0, max: 4, idle: 10s, pool: 2}",
    "http": "contract: http, subscribe: a, command: [python, s.py], http: {port: 9000, format: structured, ready: /up}",
    "stdio": "contract: stdio, subscribe: a, command: [cat], stdio: {content_type: image/png}",
    "mqtt": "contract: mqtt, subscribe: [a, {channel: b/+, as: b}], command: [prog]",
}  # fmt: skip
CHANNELS = "channels: {frames: {max_pending: 5, on_full: drop-oldest, deadline: 2s}, commands/#: {gated: true}}\n"


def resolved(text: str, **artifact: Any) -> dict[str, Any]:
    manifest = parse(text, default_pop="la")
    artifacts = {name: Artifact(**artifact) for name in manifest.functions} if artifact else {}
    return resolve(manifest, artifacts, applied_ms=1, default_pop="la")


@pytest.mark.parametrize("fields", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    "artifact", [{"bundle": HEX}, {"image": "a/b:1"}, {"image": "a/b:1", "image_id": f"sha256:{HEX}"}], ids=str
)
def test_applied_again_it_is_the_same(fields: str, artifact: dict[str, str]) -> None:
    first = resolved(
        f"namespace: v\n{CHANNELS}functions:\n  f: {{build: ./f, {fields}}}\n  g: {{image: i, subscribe: z}}\n",
        **artifact,
    )
    text = yaml.safe_dump(written(first), sort_keys=False)
    assert resolved(text) == first, text


def test_what_is_being_edited_is_no_file() -> None:
    source = {"folder": "/x", "requirements": HEX}
    with pytest.raises(BadManifest, match="being edited"):
        written(resolved("namespace: v\nfunctions: {f: {build: ./f, subscribe: a}}", source=source))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("build: ./f, bundle: " + HEX, "functions.f.bundle: stands beside build"),
        ("bundle: 12", "bundle"),
        (f"bundle: {HEX[:-1]}x", "not the SHA-256 of an archive"),
        (f"bundle: {HEX}, image_id: 'sha256:{HEX}'", "functions.f.image_id: says which image"),
        ("image: i, image_id: abc", "not the id of an image"),
    ],
)
def test_what_cannot_be(fields: str, problem: str) -> None:
    with pytest.raises(BadManifest, match=problem):
        parse(f"namespace: v\nfunctions: {{f: {{subscribe: a, {fields}}}}}", default_pop="la")
