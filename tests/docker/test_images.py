"""Images of function folders: built once per content, on the base image, with the reason when it fails."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeflow.runner import images
from edgeflow.runner.venvs import BuildFailed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def folder(tmp_path: Path, built: Callable[[str], str]) -> Path:
    """A function folder that nothing was built from before."""
    assert built("function") == "edgeflow-test/function"
    (tmp_path / "handler.py").write_text(f"MARK = {secrets.token_hex(8)!r}\n\ndef handle(ctx, a):\n    return a\n")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    return tmp_path


def build(engine: Any, folder: Path, lines: list[str]) -> str:
    return images.build_image(engine, folder, "test-ns/a_function", prefix="edgeflow-test", progress=lines.append)


def test_a_folder_becomes_an_image_once(engine: Any, folder: Path) -> None:
    lines: list[str] = []
    tag = build(engine, folder, lines)
    try:
        assert tag.startswith("edgeflow-test/test-ns-a-function:") and lines[0] == f"building {tag}"
        again: list[str] = []
        assert build(engine, folder, again) == tag and again == []
        done = engine.containers.run(
            tag, entrypoint="python3", remove=True, network_mode="none", user="65534:65534", read_only=True,
            command=["-c", "import handler, edgeflow.sdk.runtime, msgpack, os; print(handler.MARK, os.environ['EDGEFLOW_HANDLER'])"],
        )  # fmt: skip
        assert done.decode().split() == [(folder / "handler.py").read_text().split("'")[1], "/function"]
        config = engine.images.get(tag).attrs["Config"]
        assert config["User"] == "65534:65534" and config["Entrypoint"] == ["python3", "-m", "edgeflow.sdk.runtime"]
        (folder / "handler.py").write_text("MARK = 'other'\n")
        other = build(engine, folder, [])
        engine.images.remove(other, force=True)
        assert other != tag
    finally:
        engine.images.remove(tag, force=True)


def test_a_build_that_fails_shows_its_last_lines(engine: Any, folder: Path) -> None:
    (folder / "requirements.txt").write_text("this is no requirement\n")
    with pytest.raises(BuildFailed, match="ERROR: Invalid requirement") as caught:
        build(engine, folder, [])
    assert any("Invalid requirement" in line for line in caught.value.last_lines)


def test_a_missing_base_image_is_named(engine: Any, folder: Path) -> None:
    with pytest.raises(BuildFailed, match="the base image edgeflow-none/function is not on this engine") as caught:
        images.build_image(engine, folder, "a/b", prefix="edgeflow-none")
    assert "docker build" in caught.value.hint
