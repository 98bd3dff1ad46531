"""The receivers that docs/webhooks.md shows, as running programs."""

import base64
import hmac
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient

from tests.support.samples import MINIMAL
from tests.support.servers import ROOT, TIMEOUT, send_request, wait_until
from tests.support.webhooks import create_webhook, deliver, webhook_rules


def receiver_in(language: str) -> str:
    """The program in that language."""
    page = (ROOT / "docs" / "webhooks.md").read_text()
    [program] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return program


@contextmanager
def running_receiver(*command: str, port: int, secret: str) -> Iterator[None]:
    environ = os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or answers(port))
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def answers(port: int) -> bool:
    try:
        return send_request(port, "POST", "/hook", b"{}").status > 0
    except OSError:
        return False


def check_signatures(app: Flask, client: FlaskClient, *command: str, port: int) -> None:
    """Deliver an event to the receiver, then send modified copies of the request."""
    with webhook_rules(app):
        webhook = create_webhook(client, f"http://127.0.0.1:{port}/hook")
        with running_receiver(*command, port=port, secret=webhook["secret"]):
            client.post("/orders", json=MINIMAL)
            deliver(app)
            refused = [send_request(port, "POST", "/hook", b"{}", headers).status for headers in forged()]

    [delivery] = client.get(f"/webhooks/{webhook['id']}/deliveries").json["deliveries"]
    assert [attempt["status"] for attempt in delivery["attempts"]] == [204]
    assert set(refused) == {401}


def check_empty_secret(*command: str, port: int) -> None:
    """Anyone can sign with an empty key."""
    body, now = b"{}", int(time.time())
    signature = base64.b64encode(hmac.digest(b"", f"1.{now}.".encode() + body, "sha256")).decode()
    headers = {"webhook-id": "1", "webhook-timestamp": str(now), "webhook-signature": f"v1,{signature}"}
    with running_receiver(*command, port=port, secret="whsec_"):
        assert send_request(port, "POST", "/hook", body, headers).status == 401


def forged() -> Iterator[dict[str, str]]:
    """Headers without a valid signature."""
    yield {}
    for signature in ("", "v1", "v1,", "v1,AAAA", f"v1,{'A' * 43}=", f"v2,{'A' * 43}=", f"v1,{'é' * 44}", "é"):
        yield {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": signature}


def write_receiver(directory: Path, language: str, suffix: str) -> Path:
    file = directory / f"receiver.{suffix}"
    file.write_text(receiver_in(language))
    return file
