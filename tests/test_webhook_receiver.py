"""The Python receiver of docs/webhooks.md verifies signatures; make node-test tests the one in Node.js."""

import sys
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient

from tests.support.marks import on_sqlite
from tests.support.readme_receivers import (
    check_empty_secret,
    check_signatures,
    receiver_in,
    write_receiver,
)
from tests.support.servers import free_port


@on_sqlite
def test_the_receiver_accepts_only_what_is_signed(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    port, file = free_port(), write_receiver(tmp_path, "python", "py")
    command = (sys.executable, "-m", "flask", "--app", str(file), "run", "--port", str(port))

    check_signatures(app, client, *command, port=port)


def test_the_receiver_refuses_an_empty_secret(tmp_path: Path) -> None:
    port, file = free_port(), write_receiver(tmp_path, "python", "py")

    check_empty_secret(sys.executable, "-m", "flask", "--app", str(file), "run", "--port", str(port), port=port)


def test_each_receiver_has_ten_lines() -> None:
    for language in ("python", "js"):
        assert len([line for line in receiver_in(language).splitlines() if line]) == 10
