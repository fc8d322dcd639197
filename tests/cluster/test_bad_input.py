"""Whatever goes wrong in one function or event is said by name, ends as a dead letter with its reason, and everything else goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from video import Video

from edgeflow.cli.apply import Target, apply_file
from edgeflow.sdk.client import Gap

pytestmark = [pytest.mark.timeout(180)]
Wait = Callable[..., Any]

HANDLERS = {
    "raises": "raise ValueError(f'cannot read {inbox.text()}')",
    "hangs": "import time; time.sleep(600)",
    "dies": "import os; os._exit(3)",
    "emits": "ctx.emit('elsewhere', b'x')",
    "floods": "return [ctx.emit('out', b'x') for _ in range(3000)] and None",
    "works": "return inbox.text().upper()",
}
MANIFEST = "namespace: bad\nfunctions:\n" + "".join(
    f"  {name}: {{build: ./{name}, subscribe: inbox, publish: out, place: {{pops: [la]}}, retry: {{attempts: 2, backoff: 50ms, timeout: 2s}}}}\n"
    for name in HANDLERS
)
REASONS = {
    "raises": ("handler-failed", "cannot read hello"),
    "hangs": ("timeout", "did not return within 2000 ms"),
    "dies": ("instance-crashed", "the instance ended"),
    "emits": ("handler-failed", "elsewhere"),
    "floods": ("bad-output", "the limit is 2000"),
}


@pytest.fixture(scope="module")
def functions(video: Video, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("bad")
    for name, body in HANDLERS.items():
        (folder / name).mkdir()
        text = f"from edgeflow import function\n\n\n@function\ndef handle(ctx, inbox):\n    {body}\n"
        (folder / name / "handler.py").write_text(text)
    (folder / "edgeflow.yaml").write_text(MANIFEST)
    access = video.cluster.pop("la")
    apply_file(folder / "edgeflow.yaml", Target(access.api_url, access.token))


def test_each_kind_of_failure_has_its_reason_and_the_neighbours_work_on(
    video: Video, functions: None, wait_until: Wait
) -> None:
    client = video.client("la")
    client.publish("bad/inbox", "hello", subject="one")
    letters = wait_until(
        lambda: (found := list(client.dead_letters("bad"))) and len(found) >= len(REASONS) and found,
        "the dead letters",
        60,
    )
    by_function = {letter["function"]: letter for letter in letters}
    assert set(by_function) == set(REASONS)
    for name, (reason, words) in REASONS.items():
        assert by_function[name]["reason"] == reason, by_function[name]
        assert words in by_function[name]["detail"], by_function[name]
    full = client.dead_letter("bad", by_function["raises"]["id"])
    assert full is not None and "ValueError" in full["detail"] and full["inputs"][0]["event"]["subject"] == "one"
    # The neighbours, and the broken ones with their next event: replaced instances, nothing stuck.
    client.publish("bad/inbox", "again", subject="two")
    outputs = []
    for event in client.subscribe("bad/out", from_="start"):
        assert not isinstance(event, Gap)
        outputs.append(event.text())
        if len(outputs) == 2:
            break
    assert outputs == ["HELLO", "AGAIN"]
    wait_until(
        lambda: len(list(client.dead_letters("bad"))) == 2 * len(REASONS), "the second event to be given up too", 60
    )


def test_a_chunk_that_is_no_video_is_given_up_by_name_and_the_next_one_runs(video: Video, wait_until: Wait) -> None:
    bad = video.new_chunk()
    video.client("chicago").publish("vision/chunks", b"this is not an mp4", subject=bad)
    letters = wait_until(
        lambda: [one for one in video.client("chicago").dead_letters("vision") if bad in one["detail"]],
        "the dead letter",
        60,
    )
    assert letters[0]["function"] == "extract" and "not a video" in letters[0]["detail"]
    video.expect_exactly_once(video.send(), wait_until)
