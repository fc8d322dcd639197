"""Sets, quotas and the documents of a folder, without a cluster."""

from pathlib import Path

import pytest

from edgeflow.cli.folders import is_set, read_set
from edgeflow.core.applysets import Part, SetRecord, check_set_name, kinds_of, left_behind, load_record, parse_record
from edgeflow.core.quotas import parse_quota, size_per_s, written_quota
from edgeflow.errors import BadManifest, BadQuota, BadSet

MANIFEST = "namespace: {0}\nfunctions:\n  f: {{build: ./f, subscribe: a}}\n"
SETTINGS = "namespace: {0}\npolicies: [{{prefix: m/, place: lazy}}]\nquota: {{bytes_per_s: 5MB/s}}\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def parts(folder: Path) -> list[str]:
    return sorted(f"{kind} {document.data['namespace']}" for document in read_set(folder) for kind in document.kinds)


class TestFolders:
    def test_all_that_is_in_it_and_below(self, tmp_path: Path) -> None:
        both = MANIFEST.format("two") + "---\n" + SETTINGS.format("two")
        write(tmp_path, one=MANIFEST.format("one"), deep__er__two=both, zero=SETTINGS.format("zero"))
        assert parts(tmp_path) == [
            "manifest one", "manifest two", "policies two", "policies zero", "quota two", "quota zero",
        ]  # fmt: skip
        second = next(
            document for document in read_set(tmp_path) if document.kinds == ("manifest",) and "two" in document.text
        )
        assert second.text.startswith("namespace: two")

    def test_lines_have_their_numbers_in_the_file(self, tmp_path: Path) -> None:
        write(tmp_path, x=SETTINGS.format("a") + "---\n" + MANIFEST.format("a"))
        text = read_set(tmp_path)[1].text
        assert text.splitlines()[4] == "namespace: a", "as in the file"

    def test_what_belongs_to_a_function_or_a_tool_is_not_looked_at(self, tmp_path: Path) -> None:
        write(tmp_path, one=MANIFEST.format("one"), f__config="a: 1\n", f__deep__more="- x\n", node_modules__x="b: 1", **{".git__x": "c: 1"})  # fmt: skip
        assert parts(tmp_path) == ["manifest one"]

    def test_anything_else_is_refused_by_its_name(self, tmp_path: Path) -> None:
        write(tmp_path, one=MANIFEST.format("one"), other="services: {}\n")
        with pytest.raises(BadSet, match=r"other\.yaml is neither"):
            read_set(tmp_path)
        write(tmp_path, other="namespace: x\nquota: {}\nhomes: []\n")
        with pytest.raises(BadSet, match=r"other\.yaml has a field 'homes'"):
            read_set(tmp_path)
        write(tmp_path, other="a: [b\n")
        with pytest.raises(BadManifest, match=r"other\.yaml.*\n.*line 2.*not YAML"):
            read_set(tmp_path)
        with pytest.raises(BadSet, match="holds no manifest"):
            read_set(write(tmp_path / "none", **{".hidden": "a: 1"}))

    def test_a_part_is_declared_once(self, tmp_path: Path) -> None:
        write(tmp_path, one=MANIFEST.format("x"), two=MANIFEST.format("x"))
        with pytest.raises(BadSet, match=r"manifest of x is declared twice: in .*one\.yaml and in .*two\.yaml"):
            read_set(tmp_path)

    def test_one_manifest_is_no_set(self, tmp_path: Path) -> None:
        write(tmp_path, one=MANIFEST.format("x"), two=SETTINGS.format("x"), bad="a: [b")
        assert not is_set(tmp_path / "one.yaml") and is_set(tmp_path / "two.yaml") and is_set(tmp_path)
        assert not is_set(tmp_path / "bad.yaml") and not is_set(tmp_path / "none.yaml"), (
            "told what is wrong as manifests"
        )


class TestRecords:
    def test_what_is_left_behind(self) -> None:
        one, two, three = Part("a", "manifest"), Part("a", "quota"), Part("b", "manifest")
        record = SetRecord("s", frozenset({one, two, three}))
        assert left_behind(record, [one], [record]) == [two, three]
        assert left_behind(record, [one], [record, SetRecord("t", frozenset({three}))]) == [two], "another set holds it"
        assert load_record(b'{"name": "s", "parts": []}') == SetRecord("s")
        assert parse_record(record.to_json()) == record

    @pytest.mark.parametrize(
        "document",
        [None, [], {}, {"name": "s"}, {"name": "../s", "parts": []}, {"name": "s", "parts": [{"kind": "x", "namespace": "a"}]},
         {"name": "s", "parts": [{"kind": "quota", "namespace": "A/b"}]}, {"name": "s", "parts": 3}, {"name": 7, "parts": []}],
    )  # fmt: skip
    def test_what_is_no_record(self, document: object) -> None:
        with pytest.raises(BadSet):
            parse_record(document)

    def test_names(self) -> None:
        assert check_set_name("apps-1.x_Y") == "apps-1.x_Y"
        for name in ("", "-a", "a/b", "a" * 64):
            with pytest.raises(BadSet):
                check_set_name(name)

    def test_settings_of_system_are_refused(self) -> None:
        with pytest.raises(BadSet, match="namespace is 'system'"):
            kinds_of({"namespace": "system", "quota": {}}, "x")
        with pytest.raises(BadSet, match="stands in a manifest"):
            kinds_of({"namespace": "a", "functions": {}, "quota": {}}, "x")


class TestQuotas:
    def test_sizes(self) -> None:
        assert [size_per_s(text) for text in ("5", "1.5k", "2M", "1Gi", "5MB/s")] == [5, 1500, 2e6, 2**30, 5e6]

    def test_there_and_back(self) -> None:
        quota = parse_quota({"events_per_s": 5, "bytes_per_s": "2M", "burst_s": 1.5})
        assert quota == {"events_per_s": 5, "bytes_per_s": 2e6, "burst_s": 1.5}
        assert parse_quota(written_quota({**quota, "events_per_s": None})) == {"bytes_per_s": 2e6, "burst_s": 1.5}

    @pytest.mark.parametrize(
        ("document", "problem"),
        [
            ({"burst_s": 1}, "bounds something"), ({"rate": 1}, "no field 'rate'"), ({"bytes_per_s": "fast"}, "'fast' is not a size"),
            ({"events_per_s": "5"}, "not a number"), ({"events_per_s": True}, "not a number"), ({"events_per_s": 0}, "above 0"), ([], "a map"),
        ],
    )  # fmt: skip
    def test_what_is_none(self, document: object, problem: str) -> None:
        with pytest.raises(BadQuota, match=problem):
            parse_quota(document)
