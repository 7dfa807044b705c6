"""``dlmrl doctor``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from dlmrl_kit.cli.common import AsJson, new_console, print_json


def doctor_command(as_json: AsJson = False) -> None:
    """Show versions, devices, optional parts and plugins, and how to install what is missing.

    Ends with exit code 1 if the kit does not work like this. Example: dlmrl doctor
    """
    from dlmrl_kit.report.doctor import examine, table_of_findings

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        new_console().print(table_of_findings(findings))
    if any(finding.needed and finding.advice for finding in findings):
        raise typer.Exit(1)
