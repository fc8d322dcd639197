"""docs/joins.md and its examples say the same: manifests, events and the policies that there are."""

import re
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml

from edgeflow.core import manifest_models as models
from edgeflow.core.channels import captures_of, delivers, template_filter
from edgeflow.core.manifest import Artifact, check_resolved, parse, resolve

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "joins.md").read_text()
FOLDER = ROOT / "examples" / "joins"
NAMES = sorted(one.name for one in FOLDER.iterdir() if one.is_dir())


def resolved(name: str) -> dict[str, Any]:
    manifest = parse((FOLDER / name / "edgeflow.yaml").read_text(), default_pop="a")
    bundles = {one: Artifact(bundle="a" * 64) for one in manifest.functions}
    document = resolve(manifest, bundles, applied_ms=1, default_pop="a")
    check_resolved(document)
    return document


def handler(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(f"example_{path.parent.parent.name}_{path.parent.name}".replace("-", "_"), path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_each_example_stands_on_the_page_as_it_is(name: str) -> None:
    text = (FOLDER / name / "edgeflow.yaml").read_text()
    assert text[text.index("functions:") :].strip() in PAGE
    assert (FOLDER / name / "events.yaml").read_text().strip() in PAGE
    assert f"`examples/joins/{name}`" in PAGE and text.splitlines()[0].removeprefix("# ") in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_each_handler_has_the_parameters_of_its_inputs(name: str) -> None:
    manifest = parse((FOLDER / name / "edgeflow.yaml").read_text(), default_pop="a")
    for function, one in resolved(name)["functions"].items():
        module = handler(FOLDER / name / str(manifest.functions[function].build) / "handler.py")
        wanted = [item["name"] for item in (*one["inputs"], *one.get("latest", ()))]
        code = module.handle.__wrapped__.__code__ if hasattr(module.handle, "__wrapped__") else module.handle.__code__
        assert list(code.co_varnames[: code.co_argcount]) == ["ctx", *wanted]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_to_go_in_and_come_out_has_a_place(name: str) -> None:
    functions = resolved(name)["functions"].values()
    script = yaml.safe_load((FOLDER / name / "events.yaml").read_text())
    assert set(script) <= {"publish", "expect", "dead_letters", "counted", "in_order"}
    inputs = [item for one in functions for item in (*one["inputs"], *one.get("latest", ()))]
    for event in script["publish"]:
        channel = f"join-{name}/{event['channel']}"
        assert any(delivers(item["channel"], channel) for item in inputs)
        assert all(captures_of(item.get("captures", {}), channel) is not None for item in inputs)
    outputs = [template_filter(template) for one in functions for template in one["publish"]]
    for channel in script["expect"]:
        assert any(delivers(pattern, f"join-{name}/{channel}") for pattern in outputs)


def test_every_policy_has_an_example() -> None:
    functions = [one for name in NAMES for one in resolved(name)["functions"].values()]
    joins = [one["join"] for one in functions if one["join"]]
    assert {join["kind"] for join in joins} == {"all", "k", "collect", "window"} and any(
        join.get("k") == 1 for join in joins
    )
    assert {join["window"]["type"] for join in joins if "window" in join} == set(models.WINDOWS)
    assert {join["on_timeout"] for join in joins} == set(get_args(get_args(models.OnTimeout)[0]))
    assert {join.get("duplicates", "first") for join in joins} == set(get_args(get_args(models.Duplicates)[0]))
    assert {type(join["count"]) for join in joins if join["kind"] == "collect"} == {int, str}
    assert any("max_pending" in join for join in joins) and any("latest" in one for one in functions)
    assert {one["keyed"]["state"] for one in functions if "keyed" in one} == {True, False}
    assert any("where" in item for one in functions for item in one["inputs"])
    assert any("captures" in item for one in functions for item in one["inputs"])
    assert any("/_dead/" in item["channel"] for one in functions for item in one["inputs"])


def test_every_heading_of_the_contents_is_there() -> None:
    def anchor(title: str) -> str:
        return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")

    headings = {anchor(title) for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    assert [target for target in re.findall(r"\]\(#([\w-]+)\)", PAGE) if target not in headings] == []
