"""A folder of manifests, policies and quotas as one set: apply it, compare it with the cluster, remove what is gone from it.

What it is: reading the documents of a folder, and bringing a PoP from what it has to what they say, part by part.
What it is not: a transaction over namespaces: each part is one step of its own, and applying again goes on where it ended.
What must stay true: nothing is changed before all documents are valid and all functions are built; what is removed was applied from this set before,
is named, and was agreed to.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import (
    Applied,
    FunctionProgress,
    PopApi,
    Prepared,
    Say,
    Site,
    Target,
    hand_over,
    prepare,
    read,
    read_text,
    wait_ready,
)
from edgeflow.cli.console import out
from edgeflow.cli.reach import Output, confirm, errors, print_json, said_by
from edgeflow.core import yamldoc
from edgeflow.core.applysets import KINDS, Kind, Part, SetRecord, check_set_name, kinds_of, left_behind, parse_record
from edgeflow.core.policies import load_policies, parse_rules, revised
from edgeflow.core.quotas import DEFAULT_BURST_S, parse_quota
from edgeflow.errors import BadManifest, BadPolicy, BadQuota, BadSet, NotFound, VersionMismatch

SKIPPED = frozenset({"__pycache__", "node_modules", "venv"})
SUFFIXES = (".yaml", ".yml")
VALUE_CHARS = 60
TRIES = 5

Change = Literal["created", "changed", "unchanged", "removed", "left"]
_SPLIT = re.compile(r"^---(?:[ \t].*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Options:
    """How to apply."""

    prune: bool = False
    set_: str | None = None
    yes: bool = False
    wait: bool = True
    timeout_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document of a file. `text` has empty lines for what is before it, so that its lines have their numbers."""

    file: Path
    text: str
    data: Mapping[str, Any]
    kinds: tuple[Kind, ...]


@dataclass(slots=True)
class Step:
    """What becomes, or would become, of one part. `left`: it was applied from this set before, is gone from it, and stays."""

    part: Part
    change: Change
    fields: list[dict[str, Any]] = field(default_factory=list)
    """What is not as before; of a manifest its functions."""
    answer: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {"kind": self.part.kind, "namespace": self.part.namespace, "change": self.change, "fields": self.fields}


@dataclass(slots=True)
class Plan:
    """What a folder, or a file, would change."""

    set_: str | None
    steps: list[Step]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    wishes: dict[Part, Any] = field(default_factory=dict)
    record: SetRecord | None = None
    tag: str | None = None
    source: str = ""

    @property
    def declared(self) -> frozenset[Part]:
        """The parts that the documents declare."""
        return frozenset({*self.wishes, *(Part(name, "manifest") for name in self.prepared)})


@dataclass(slots=True)
class AppliedSet:
    """What applying did."""

    plan: Plan
    manifests: list[Applied]


# ------------------------------------------------------------------ reading


def is_set(path: Path) -> bool:
    """Whether there is more to `path` than one manifest."""
    if path.is_dir():
        return True
    try:
        return any(document.kinds != ("manifest",) for document in _documents(path)) or len(_documents(path)) > 1
    except (BadSet, BadManifest):
        return False  # as a manifest it is told what is wrong


def read_set(path: Path) -> list[Document]:
    """The documents of a folder, or of one file. Raises BadSet, and BadManifest for what is not YAML."""
    if not path.is_dir():
        return _declared_once(_documents(path))
    files = sorted(_files(path))
    found = [document for file in files for document in _documents(file, strict=False)]
    inner = {folder for document in found for folder in _build_folders(document)}
    kept = [file for file in files if not inner & set(file.resolve().parents)]
    documents = [document for file in kept for document in _documents(file)]
    if not documents:
        raise BadSet(
            f"{path} holds no manifest and no settings",
            hint="Name a folder with *.yaml files, or a manifest: edgeflow apply -f edgeflow.yaml.",
        )
    return _declared_once(documents)


def _files(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        found += [Path(root, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    return found


def _documents(file: Path, *, strict: bool = True) -> list[Document]:
    """`strict`: every document must be one that a set holds."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        read(file)  # says why
        raise
    found = []
    for piece in _pieces(text):
        loaded = yamldoc.load(piece)
        if loaded.data is None and not loaded.flaws:
            continue
        if loaded.flaws and not isinstance(loaded.data, Mapping):
            if strict:
                read_text(piece, file)  # says what and where
            continue
        try:
            kinds = kinds_of(loaded.data, str(file))
        except BadSet:
            if strict:
                raise
            continue
        found.append(Document(file, piece, loaded.data, tuple(kinds)))
    return found


def _pieces(text: str) -> list[str]:
    """The documents of a YAML stream, each on the lines on which it stands."""
    found, at = [], 0
    for mark in [*(match.start() for match in _SPLIT.finditer(text)), len(text)]:
        if text[at:mark].strip(" \n\r\t-"):
            found.append("\n" * text.count("\n", 0, at) + text[at:mark])
        at = mark
    return found


def _build_folders(document: Document) -> set[Path]:
    functions = document.data.get("functions")
    built = (
        [one.get("build") for one in functions.values() if isinstance(one, Mapping)]
        if isinstance(functions, Mapping)
        else []
    )
    folders = {(document.file.parent / one).resolve() for one in built if isinstance(one, str) and one}
    return folders - {document.file.parent.resolve()}


def _declared_once(documents: list[Document]) -> list[Document]:
    where: dict[Part, Path] = {}
    for document in documents:
        for kind in document.kinds:
            part = Part(str(document.data.get("namespace")), kind)
            if part in where:
                raise BadSet(
                    f"the {part} is declared twice: in {where[part]} and in {document.file}",
                    hint="A namespace has one manifest, one list of policies and one quota: put them together, or give one another namespace.",
                )
            where[part] = document.file
    return documents


# ------------------------------------------------------------------ comparing


def compare(path: Path, target: Target, options: Options, say: Say) -> Plan:
    """What applying would change. Raises BadManifest, BadSet, BadPolicy, BadQuota, BuildFailed."""
    with PopApi(target) as api, Operator(target.url, target.token) as client:
        return _compare(path, api, client, options, say)


def _compare(path: Path, api: PopApi, client: Operator, options: Options, say: Say) -> Plan:
    if not path.exists():
        read(path)  # says so
    documents = read_set(path)
    name = options.set_ or (path.resolve().name if path.is_dir() else None)
    if options.prune and name is None:
        raise BadSet("--prune is about a set", hint="Name a folder (-f apps/), or give the set a name: --set apps.")
    plan = Plan(None if name is None else check_set_name(name), [], source=f"{said_by()}:{path.resolve()}")
    site = Site.of(api)
    problems: list[BadManifest] = []
    manifests = []
    for document in documents:
        if document.kinds == ("manifest",):
            try:
                manifests.append((document, read_text(document.text, document.file, **site.known)))
            except BadManifest as error:
                problems.append(error)
        else:
            namespace = str(document.data["namespace"])
            for kind in document.kinds:
                plan.steps.append(_settings(Part(namespace, kind), document, client, site, plan))
    if problems:
        raise (
            problems[0]
            if len(problems) == 1
            else BadManifest("\n".join(one.message for one in problems), hint=problems[0].hint)
        )
    for document, manifest in manifests:
        prepared = plan.prepared[manifest.namespace] = prepare(manifest, document.file.parent, site, say)
        answer = api.put_manifest(prepared.resolved, dry_run=True)
        change: Change = {"created": "created", "updated": "changed"}.get(answer["status"], "unchanged")  # type: ignore[assignment]
        plan.steps.append(Step(Part(manifest.namespace, "manifest"), change, answer["changes"], answer))
    if plan.set_ is not None:
        known = client.set_record(plan.set_)
        if known is not None:
            plan.record, plan.tag = parse_record(known[0]), known[1]
            others = [parse_record(one) for one in client.sets()]
            plan.steps += [Step(part, "left") for part in left_behind(plan.record, plan.declared, others)]
    return plan


def _settings(part: Part, document: Document, client: Operator, site: Site, plan: Plan) -> Step:
    """Policies or quota of a namespace beside those it has."""
    try:
        before, after = (_quotas if part.kind == "quota" else _rules)(
            part.namespace, document.data[part.kind], client, site
        )
    except (BadPolicy, BadQuota) as error:
        error.message = f"{document.file}: {error.message}"
        raise
    plan.wishes[part] = after
    if before == after:
        return Step(part, "unchanged")
    return Step(
        part, "changed" if before else "created", [{"field": part.kind, "before": before or None, "after": after}]
    )


def _quotas(namespace: str, declared: Any, client: Operator, _site: Site) -> tuple[Any, Any]:
    """The quota there is, and the one that is declared."""
    known = client.quota(namespace) or {}
    before = {name: value for name, value in known.items() if name != "namespace" and value is not None}
    return before, {"burst_s": DEFAULT_BURST_S, **parse_quota(declared)}


def _rules(namespace: str, declared: Any, client: Operator, site: Site) -> tuple[Any, Any]:
    """The rules there are, and those that are declared. Raises BadPolicy, also when a home would have to be moved."""
    rules = parse_rules(declared, site.pops)
    found = _policies(client, namespace)
    revised(load_policies(json.dumps(found).encode()), rules)
    after = [rule.to_json() for rule in sorted(rules, key=lambda one: one.prefix)]
    return [_plain(rule) for rule in found["rules"]], [_plain(rule) for rule in after]


def _policies(client: Operator, namespace: str) -> dict[str, Any]:
    try:
        return client.policies(namespace)
    except NotFound:  # the namespace is made by what is applied
        return {"rules": [], "term": 0, "version": None}


def _plain(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name != "term"}


# ------------------------------------------------------------------ applying


def apply_set(
    path: Path, target: Target, options: Options, say: Say, show: Callable[[Mapping[str, FunctionProgress]], None] = lambda functions: None
) -> AppliedSet:  # fmt: skip
    """Apply a folder, and wait until its functions are ready. Raises what `compare` does, NotApplied and Unavailable."""
    with PopApi(target) as api, Operator(target.url, target.token) as client:
        plan = _compare(path, api, client, options, say)
        gone = [step for step in plan.steps if step.change == "left"]
        if options.prune and gone:
            before = plan.record.source if plan.record is not None else ""
            moved = f" (last applied from {before})" if before and before != plan.source else ""
            confirm(
                f"Remove from the cluster, as they are not in {path} any more{moved}: {', '.join(str(step.part) for step in gone)}?",
                yes=options.yes,
            )
        if plan.set_ is not None:
            _keep(client, plan, plan.declared)
        for part, wish in sorted(plan.wishes.items()):
            _set(client, part, wish)
        site = Site.of(api)
        applied = [hand_over(api, target, prepared, site, say) for prepared in plan.prepared.values()]
        for one in applied:
            if options.wait:
                wait_ready(api, one, options.timeout_s, show)
        if options.prune and gone:
            for step in gone:
                _remove(client, step.part)
                step.change = "removed"
                say(f"{step.part}: removed")
            _keep(client, plan, plan.declared, without=frozenset(step.part for step in gone))
    return AppliedSet(plan, applied)


def _set(client: Operator, part: Part, wish: Any) -> None:
    if part.kind == "quota":
        client.set_quota(part.namespace, wish)
    else:
        client.set_policies(part.namespace, wish, None)


def _remove(client: Operator, part: Part) -> None:
    try:
        if part.kind == "manifest":
            client.remove_functions(part.namespace)
        elif part.kind == "quota":
            client.clear_quota(part.namespace)
        else:
            client.set_policies(part.namespace, [], None)
    except NotFound:
        pass  # somebody was faster


def _keep(client: Operator, plan: Plan, parts: frozenset[Part], without: frozenset[Part] = frozenset()) -> None:
    """Write down that the set holds `parts` beside what it has, and takes them over from other sets."""
    name = str(plan.set_)
    for other in client.sets():
        record = parse_record(other)
        if record.name != name and record.parts & parts:
            _write(client, record.name, lambda had: had - parts, record.source)
    _write(client, name, lambda had: (had | parts) - without, plan.source)


def _write(client: Operator, name: str, change: Callable[[frozenset[Part]], frozenset[Part]], source: str) -> None:
    for tries in range(TRIES):
        known = client.set_record(name)
        had = parse_record(known[0]).parts if known is not None else frozenset()
        record = SetRecord(name, change(had), source=source).to_json()
        try:
            client.put_set(
                name, {"parts": record["parts"], "source": source}, known[1] if known is not None else None, said_by()
            )
            return
        except VersionMismatch:  # somebody else applies just now
            if tries == TRIES - 1:
                raise
            time.sleep(0.1)


# ------------------------------------------------------------------ showing


def show_plan(plan: Plan, output: Output) -> None:
    """What would change. One manifest that is no set is shown as the API answers."""
    if plan.set_ is None and len(plan.steps) == 1 and plan.steps[0].answer:
        _show_one(plan.steps[0], output)
        return
    if output is Output.JSON:
        print_json({"set": plan.set_, "steps": [step.to_json() for step in plan.steps]})
        return
    for step in _in_order(plan.steps):
        if step.change == "unchanged":
            continue
        print(f"{_WORDS[step.change]} {step.part}")
        _show_fields(step, "    ")
    same = sum(step.change == "unchanged" for step in plan.steps)
    errors.print(f"{same} unchanged" if same < len(plan.steps) else "nothing would change")


_WORDS: dict[Change, str] = {
    "created": "created", "changed": "changed", "unchanged": "unchanged", "removed": "removed",
    "left": "gone from the folder (--prune removes it):",
}  # fmt: skip


def show_applied(applied: AppliedSet, output: Output) -> None:
    """What was done."""
    steps = _in_order(applied.plan.steps)
    if output is Output.JSON:
        print_json(
            {
                "set": applied.plan.set_,
                "steps": [step.to_json() for step in steps],
                "manifests": [asdict(one) for one in applied.manifests],
            }
        )
        return
    for step in steps:
        print(f"{_WORDS[step.change]} {step.part}")
    count = sum(len(one.functions) for one in applied.manifests)
    out.print(
        f"[green]✓[/] {len(applied.plan.declared)} parts, {count} functions"
        + (f", set {applied.plan.set_}" if applied.plan.set_ else "")
    )


def _in_order(steps: list[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: (step.part.namespace, KINDS.index(step.part.kind)))


def _show_one(step: Step, output: Output) -> None:
    if output is Output.JSON:
        print_json(step.answer)
        return
    if not step.fields:
        errors.print(
            f"{step.part.namespace}: nothing"
            if step.change == "unchanged"
            else f"{step.part.namespace}: channel policies"
        )
    _show_fields(step, "")


def _show_fields(step: Step, indent: str) -> None:
    for change in step.fields:
        if step.part.kind != "manifest":
            print(f"{indent}{_short(change['before'])} -> {_short(change['after'])}")
            continue
        print(f"{indent}{change['change']} {step.part.namespace}/{change['function']}")
        for one in change["fields"]:
            print(f"{indent}    {one['field']}: {_short(one['before'])} -> {_short(one['after'])}")


def _short(value: Any) -> str:
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 3] + "..."
