"""The description passes the linters. redocly.yaml and spectral.yaml say why a rule is switched off."""

import json

from tests.api.conftest import HERE, Tool


def test_redocly_reports_no_problem(run: Tool) -> None:
    options = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    report = run("redocly", "lint", "openapi.json", "--config", str(HERE / "redocly.yaml"), "--format=json", **options)

    assert json.loads(report)["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}, report


def test_spectral_reports_no_problem(run: Tool) -> None:
    run("spectral", "lint", "openapi.json", "--ruleset", str(HERE / "spectral.yaml"), "--fail-severity=warn")
