"""The reader of manifests: YAML with lines, and levels in braces that need no quotes."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeflow.core import yamldoc


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: {channel: cam/{id}/frames, as: x}", {"a": {"channel": "cam/{id}/frames", "as": "x"}}),
        ("a: [cam/{id}, {id}/b, x]", {"a": ["cam/{id}", "{id}/b", "x"]}),
        ("a: cam/{id}/{b_2}", {"a": "cam/{id}/{b_2}"}),
        ("a: {id}/b", {"a": "{id}/b"}),
        ("'cam/{id}': 1", {"cam/{id}": 1}),
        ("{cam/{id}: 1}", {"cam/{id}": 1}),
        ("a: 'x/{id}'\nb: \"x/{id}\"\nc: |\n  x/{id}/y\n", {"a": "x/{id}", "b": "x/{id}", "c": "x/{id}/y\n"}),
        ("a: {b: {c: 1}}", {"a": {"b": {"c": 1}}}),
        ("a: {b}", {"a": {"b": None}}),
        ("a: '\ue000x\ue001'", {"a": "\ue000x\ue001"}),
        ('a: "\\uE000x\\uE001"\nb: x/{y}', {"a": "\ue000x\ue001", "b": "x/{y}"}),
    ],
)
def test_levels_in_braces(text: str, data: object) -> None:
    document = yamldoc.load(text)
    assert document.flaws == [] and document.data == data


def test_a_flaw_shows_what_was_written() -> None:
    document = yamldoc.load("a: [x/{id}/y: , }")
    assert document.flaws and "\ue000" not in document.flaws[0].text
    assert yamldoc.load("x/{id}: 1\nx/{id}: 2").flaws[0].path == ("x/{id}",)


TEXT = st.text("ab/{}id_ \n'\":,[]#", max_size=12)
DATA = st.recursive(TEXT | st.integers(-3, 3) | st.booleans(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)  # fmt: skip


@given(DATA, st.booleans())
def test_what_is_yaml_means_what_it_means_everywhere(data: Any, flow: bool) -> None:
    text = yaml.safe_dump(data, default_flow_style=flow)
    assert yamldoc.load(text).data == data


@given(st.text("ab/{}id\n:,[] '\"-|&*", max_size=40))
def test_no_text_that_is_yaml_changes(text: str) -> None:
    try:
        wanted = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError):
        return
    found = yamldoc.load(text)
    assert found.data == wanted or found.flaws
