"""What came of a scenario: for people, for programs, and as a row of the table in docs/guarantees.md."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- lab: begin (made by `make lab`) -->", "<!-- lab: end -->"
COLUMNS = (
    "scenario",
    "acknowledged",
    "lost",
    "doubled",
    "superseded",
    "went on after",
    "healed",
    "caught up",
    "on the links",
)


@dataclass
class Report:
    """One run of one scenario."""

    scenario: str
    what: str
    seed: int
    form: str
    pops: dict[str, str]
    """Role -> PoP."""
    placed: list[str]
    acked: int = 0
    lost: int = 0
    doubled: int = 0
    superseded: int = 0
    stood_s: float | None = None
    """The longest that an input, accepted elsewhere around the moment when a PoP was lost, waited for its result at a PoP that was left; None: no PoP was lost."""
    waited_for_return: bool = False
    """Some of those had to wait until the lost PoP was there again: nobody took its work over."""
    healed_s: float | None = None
    """From the repair until all that was acknowledged before had its result at every PoP."""
    caught_up_s: float | None = None
    """From the repair until every PoP held all logs as they were then."""
    link_bytes: int = 0
    took_s: float = 0.0
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sabotage: str | None = None

    @property
    def ok(self) -> bool:
        """A scenario holds when there is no problem; a control when its sabotage was found, and nothing else."""
        if self.sabotage is None:
            return not any(self.problems.values())
        planted = self.lost if self.sabotage == "lose" else self.doubled
        return planted > 0 and not any(found for name, found in self.problems.items() if name != "one visible result")

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """For people."""
        roles = ", ".join(f"{role} = {pop}" for role, pop in self.pops.items())
        found = [
            f"{self.scenario}: {'holds' if self.ok else 'BROKEN'}  (seed {self.seed}, {roles}; functions at {', '.join(self.placed)})",
            f"  {self.acked} acknowledged, {self.lost} lost, {self.doubled} doubled, {self.superseded} superseded",
            f"  went on after {_seconds(self.stood_s)}{' (when it was back)' if self.waited_for_return else ''}, healed {_seconds(self.healed_s)}, "
            f"caught up {_seconds(self.caught_up_s)}, {self.link_bytes / 1e6:.1f} MB on the links, {self.took_s:.0f} s in all",
        ]
        found += [f"  note: {note}" for note in self.notes]
        found += [f"  {name}: {text}" for name, texts in self.problems.items() for text in texts]
        if self.sabotage is not None:
            found.append(f"  a control: its functions {self.sabotage} on purpose, and that must be found")
        return found

    def row(self) -> list[str]:
        """Of the table."""
        went_on = _seconds(self.stood_s) + (" (with its return)" if self.waited_for_return else "")
        return [
            self.scenario, str(self.acked), str(self.lost), str(self.doubled), str(self.superseded), went_on, _seconds(self.healed_s),
            _seconds(self.caught_up_s), f"{self.link_bytes / 1e6:.1f} MB",
        ]  # fmt: skip


def table(reports: Iterable[Report]) -> str:
    """The rows as Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(report.row() for report in reports)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_table(page: Path, reports: Sequence[Report], about: str) -> None:
    """Put the table between the markers of a page. Raises ValueError when it has none."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{about}\n\n{table(reports)}{END}{after}")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
