"""The examples of the API description are real responses."""

import json

from flask import Flask

from app.errors import problem_types
from app.http.openapi import EXAMPLES
from tests.support.api_examples import db_name, record

ONLY_ON_POSTGRESQL = {"request-in-flight"}  # SQLite has one writer, and no locks on keys


def test_the_examples_are_the_responses_of_the_service(app: Flask) -> None:
    examples = json.loads(EXAMPLES.read_text())
    if db_name(app) == "sqlite":
        examples["problems"] = {k: v for k, v in examples["problems"].items() if k not in ONLY_ON_POSTGRESQL}

    recorded = record(app)

    for part in ("operations", "problems", "payloads"):
        assert recorded[part].keys() == examples[part].keys(), "run `make examples`"
        for name, example in examples[part].items():
            assert recorded[part][name] == example, f"{name}: run `make examples` and look at the difference"


def test_each_problem_has_an_example() -> None:
    missing = {kind.slug for kind in problem_types()} ^ json.loads(EXAMPLES.read_text())["problems"].keys()

    assert not missing, f"send requests for {missing} in tests/support/api_examples.py and run `make examples`"
