"""Links between documents lead somewhere, and files, tests, limits and store operations that documents name exist."""

import re
from pathlib import Path

import pytest

from edgeflow.settings import Limits

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(
    r"`((?:edgeflow|tests|scripts|functions|deploy|bench|docs)/[\w./-]+\.(?:py|lua|md|yaml|json|html|txt))(?:::(\w+))?`"
)
MADE_BY_THE_READER = {"functions/annotate/handler.py", "functions/annotate/requirements.txt"}


def prose(page: Path) -> str:
    """The text without its code blocks, whose brackets are not links."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments that a code host makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"`", "", heading)).strip().lower().replace(" ", "-") for heading in headings
    }


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        path, _, fragment = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (fragment and aim.suffix == ".md" and fragment not in anchors(aim)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_and_tests_exist(page: Path) -> None:
    missing = []
    for path, test in NAMED_FILE.findall(page.read_text()):
        file = ROOT / path
        if path not in MADE_BY_THE_READER and (not file.exists() or (test and f"def {test}(" not in file.read_text())):
            missing.append(f"{path}::{test}" if test else path)
    assert missing == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = (target.partition("#")[0] for target in LINK.findall(prose(page)))
        todo += [
            (page.parent / path).resolve()
            for path in links
            if path and ":" not in path and (page.parent / path).exists()
        ]
    assert sorted(name(page) for page in PAGES if page not in reached) == []


def test_every_limit_is_documented() -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    assert [field for field in Limits.model_fields if f"`limits.{field}`" not in text] == []


def test_documented_limits_have_the_values_of_the_code() -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    for field, info in Limits.model_fields.items():
        found = re.search(rf"^\| `limits\.{field}` \| ([\d,]+)", text, re.MULTILINE)
        assert found is not None and int(found[1].replace(",", "")) == info.default, field


def test_every_store_operation_is_documented() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    operations = [
        found for file in sorted((ROOT / "edgeflow" / "store" / "lua").glob("*.lua")) for found in re.findall(r"register_function\('(\w+)'", file.read_text())
    ]  # fmt: skip
    assert operations and [operation for operation in operations if f"| `{operation}` |" not in text] == []


def test_every_counter_and_metric_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    lua = "".join(file.read_text() for file in (ROOT / "edgeflow" / "store" / "lua").glob("*.lua"))
    counters = set(re.findall(r"\bcount\(\w+, '([a-z_:-]+)'(?! \.\.)", lua))
    source = (ROOT / "edgeflow" / "api" / "metrics.py").read_text()
    metrics = set(re.findall(r'MetricFamily\(\s*"(edgeflow_\w+)"', source))
    assert len(counters) > 15 and sorted(name for name in counters if f"`{name}`" not in text) == []
    assert len(metrics) > 10 and sorted(name for name in metrics if name not in text) == []


def test_every_store_key_is_documented() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    lua = "".join(file.read_text() for file in (ROOT / "edgeflow" / "store" / "lua").glob("*.lua"))
    keys = set(re.findall(r"\bp \.\. '([a-z][a-z:]*)'", lua))
    assert len(keys) > 30 and sorted(key for key in keys if f"`{key}" not in text) == []
