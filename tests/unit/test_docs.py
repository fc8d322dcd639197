"""The documentation names everything that is there: settings, error codes, commands and routes. Pages generated from code are current."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_docs_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgeflow_docs_script", ROOT / "scripts" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


docs = load_docs_script()


@pytest.mark.parametrize("name", sorted(docs.PAGES))
def test_generated_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == docs.PAGES[name](), f"docs/{name} is not current: run scripts/docs"


def test_error_codes_mean_one_thing() -> None:
    codes: dict[str, str] = {}
    for error in docs.all_errors():
        assert (error.__doc__ or "").strip(), f"{error.__name__} has no default message"
        assert error.hint, f"{error.__name__} has no hint"
        assert codes.setdefault(error.code, error.__name__) == error.__name__, (
            f"code {error.code!r} is used by {codes[error.code]} and {error.__name__}"
        )


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    undocumented = [path for path, _ in docs.commands() if not re.search(rf"{re.escape(path)}\b", text)]
    assert not undocumented, f"not in docs/cli.md: {', '.join(undocumented)}"


def test_every_route_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    undocumented = [route for route in docs.routes() if route not in text]
    assert not undocumented, f"not in docs/api.md: {', '.join(undocumented)}"
