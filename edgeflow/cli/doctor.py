"""`edgeflow doctor`: what this machine has, what it lacks, how to mend it."""

from dataclasses import asdict

import typer
from rich.markup import escape

from edgeflow.cli.console import out
from edgeflow.cli.reach import Output, OutputOption, print_json
from edgeflow.host.checks import examine, usable_modes
from edgeflow.host.layout import Home, default_home

MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}


def doctor(output: OutputOption = Output.TABLE) -> None:
    """Check python, Mosquitto, Redis, Docker, ports, disk and memory. Exit status 1 if no mode can run here."""
    findings = examine(Home(default_home()))
    modes = usable_modes(findings)
    if output is Output.JSON:
        print_json({"modes": modes, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            level = finding.level
            if level == "problem" and finding.needed_for != "both" and modes:
                level = "warning"  # the other mode can run
            scope = (
                "" if finding.needed_for == "both" or level == "ok" else f" [dim](only {finding.needed_for} mode)[/dim]"
            )
            out.print(f"{MARKS[level]} {finding.name}: {escape(finding.detail)}{scope}")
            if finding.fix:
                out.print(f"    → {escape(finding.fix)}")
        out.print(f"Can run here: {' and '.join(modes)} mode." if modes else "[red]No mode can run here yet.[/red]")
    if not modes:
        raise typer.Exit(1)
