"""What the README tells a newcomer to write and type works: the function runs, the manifest is valid, the commands exist."""

import re
import sys
from pathlib import Path

import pytest
import typer

from edgeflow.cli.main import app
from edgeflow.core import manifest
from edgeflow.sdk.function import load_handler
from edgeflow.sdk.testing import call, event

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def snippets(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_first_function_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2, numpy = pytest.importorskip("cv2"), pytest.importorskip("numpy")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (source,) = snippets("python")
    (tmp_path / "handler.py").write_text(source)
    grey = cv2.imencode(".jpg", numpy.full((90, 160, 3), 128, numpy.uint8))[1].tobytes()
    faces = {"width": 160, "height": 90, "faces": [{"box": [40.2, 20.0, 30.0, 30.0], "roll_deg": 0.0, "support": 9}]}
    output = call(
        load_handler(tmp_path), frames=event(grey, subject="clip/1"), faces=faces, publish=["annotated"]
    ).output
    drawn = cv2.imdecode(numpy.frombuffer(output.data, numpy.uint8), cv2.IMREAD_COLOR)
    assert output.subject == "clip/1" and int(drawn[20, 55][1]) > 180 and abs(int(drawn[80, 150][1]) - 128) < 10


def test_the_first_function_has_about_ten_lines() -> None:
    (source,) = snippets("python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 10


def test_the_manifest_lines_fit_below_the_other_functions() -> None:
    (lines,) = snippets("yaml")
    folder = ROOT / "functions"
    parsed = manifest.parse((folder / "edgeflow.yaml").read_text() + lines)
    assert "annotate" in parsed.functions
    assert "opencv" in (folder / "detect" / "requirements.txt").read_text()


def commands(text: str) -> list[str]:
    """Lines that call the CLI, without what surrounds the call."""
    return [
        found.strip()
        for snippet in snippets("sh", text)
        for found in re.findall(r"(?<![\w./-])edgeflow ([a-z][^#\n|>)\"]*)", snippet)
    ]


@pytest.mark.parametrize("command", sorted({*commands(README), *commands(OPERATIONS)}))
def test_the_commands_exist_with_their_options(command: str) -> None:
    found: object = typer.main.get_command(app)
    words = command.split()
    while words and hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}  # type: ignore[attr-defined]
    assert [word for word in words if word.startswith("-") and word not in known] == []


@pytest.mark.parametrize("target", re.findall(r"^make ([a-z-]+)", "\n".join(snippets("sh")), re.MULTILINE))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_what_the_manifest_refuses_is_named() -> None:
    names = {field.rsplit(".", 1)[-1] for field in manifest.NOT_AVAILABLE} - {"prefetch"}
    status = README.partition("## What is not there yet")[2].partition("## Documentation")[0]
    assert sorted(word for word in names if not re.search(rf"\b{word}\b", status)) == []
