"""The receiver of docs/webhooks.md in Node.js verifies what the service sends."""

from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient

from tests.support.marks import on_sqlite
from tests.support.readme_receivers import check_empty_secret, check_signatures, write_receiver
from tests.support.servers import free_port


@on_sqlite
def test_the_receiver_accepts_only_what_is_signed(app: Flask, client: FlaskClient, tmp_path: Path) -> None:
    port = free_port()

    check_signatures(app, client, "node", str(write_receiver(tmp_path, "js", "cjs")), port=port)


def test_the_receiver_refuses_an_empty_secret(tmp_path: Path) -> None:
    port = free_port()

    check_empty_secret("node", str(write_receiver(tmp_path, "js", "cjs")), port=port)
