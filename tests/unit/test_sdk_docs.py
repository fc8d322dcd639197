"""The snippets of docs/first-function.md run, and docs/protocol.md names every message that the SDK sends or understands."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgeflow.cli import new
from edgeflow.core import manifest
from edgeflow.sdk import attempt, connection, session, welcome
from edgeflow.sdk.function import load_handler
from edgeflow.sdk.outcome import Outcome
from edgeflow.sdk.testing import call, event

DOCS = Path(__file__).resolve().parents[2] / "docs"


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "first-function.md").read_text(), re.DOTALL)


def test_the_first_function_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler, its_test = snippets("python")[:2]
    assert (handler, its_test) == (new.HANDLER, new.TEST)
    (tmp_path / "handler.py").write_text(handler)
    handle = load_handler(tmp_path)
    assert call(handle, words="good morning").output.text() == "GOOD MORNING"
    namespace: dict[str, object] = {}
    exec(its_test, namespace)
    namespace["test_shouts"]()  # type: ignore[operator]


def test_the_function_that_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler, its_test = snippets("python")[2:4]
    (tmp_path / "handler.py").write_text(handler)
    handle = load_handler(tmp_path)
    first = call(handle, readings=event(-5, captures={"room": "cellar"}), publish=["room/{room}/summary"])
    assert first.output.json() == {"room": "cellar", "n": 1, "highest": -5}
    namespace: dict[str, object] = {}
    exec(its_test, namespace)
    namespace["test_counts"]()  # type: ignore[operator]


def test_the_fork_of_the_running_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "handler.py").write_text(snippets("python")[4])
    handle = load_handler(tmp_path)
    grey = numpy.full((90, 160, 3), 128, numpy.uint8)
    jpeg = cv2.imencode(".jpg", grey)[1].tobytes()
    faces = {"width": 160, "height": 90, "faces": [{"box": [40.2, 20.0, 30.0, 30.0], "roll_deg": 0.0, "support": 9}]}
    output = call(handle, frames=event(jpeg, subject="clip/1"), faces=faces, publish=["annotated"]).output
    drawn = cv2.imdecode(numpy.frombuffer(output.data, numpy.uint8), cv2.IMREAD_COLOR)
    assert output.subject == "clip/1"
    assert int(drawn[20, 55][1]) > 180  # green on the box's upper edge
    assert abs(int(drawn[80, 150][1]) - 128) < 10


def test_the_manifest_snippets_are_valid() -> None:
    first, *additions = snippets("yaml")
    assert first == new.MANIFEST.format(name="hello")
    manifest.parse(first, default_pop="dev")
    assert len(additions) == 2
    for addition in additions:
        manifest.parse("namespace: vision\nfunctions:\n" + addition)


def source_of(*modules: ModuleType) -> str:
    return "".join(Path(str(module.__file__)).read_text() for module in modules)


def test_every_message_is_on_the_protocol_page() -> None:
    page = (DOCS / "protocol.md").read_text()
    source = source_of(connection, session, welcome)
    kinds = (
        set(re.findall(r'"t": "(\w+)"', source))
        | set(re.findall(r'kind == "(\w+)"', source))
        | {"kill", "welcome", "reply"}
    )
    assert len(kinds) >= 18
    assert not {kind for kind in kinds if f"`{kind}" not in page}


def test_every_field_of_the_agent_is_on_the_protocol_page() -> None:
    page = (DOCS / "protocol.md").read_text()
    source = source_of(attempt, session, welcome)
    read = set(re.findall(r'(?:item|message|inputs\[0\])(?:\.get\(|\[)"(\w+)"', source))
    assert len(read) > 25
    assert sorted(name for name in read if not re.search(rf"[`{{, ]{name}[`,?}}: ]", page)) == []
    written = set(Outcome(None).commit_fields()) | {"increments", "state"}  # type: ignore[arg-type]
    assert {name for name in written if f"| `{name}` |" not in page} == set()
