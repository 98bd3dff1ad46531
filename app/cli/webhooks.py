"""`flask webhooks`: forward the events of a running service to a local program; list the endpoints."""

import json
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

import click
import orjson
from flask.cli import AppGroup, with_appcontext

from app.cli.common import errors_in_one_line, migrated_database
from app.config import ROOT
from app.db.engine import read_timestamp
from app.models.lifecycle import EVENT_TYPES
from app.models.principal import Principal
from app.models.webhook import PAYLOADS, THIN, RefusedURL, parse_webhook_url
from app.services.credentials import new_webhook_secret, signed_headers
from app.services.webhook_delivery import WebhookSender
from app.services.webhook_queue import Attempt, render_event
from app.services.webhook_service import list_endpoints

OPERATOR = Principal("system:webhooks", frozenset())
_WAIT = 20  # seconds that the service keeps a request open until there is an event
_PAUSE = 1.0  # seconds before the next attempt to reach the service or the program
_LATEST = "latest"  # GET /events: from now on

webhooks = AppGroup("webhooks", help="Forward events to a local program; list the webhooks.")


def _url(_: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        parse_webhook_url(value, allow_private=True)
    except RefusedURL as error:
        raise click.BadParameter(str(error)) from None
    return value


@webhooks.command("list")
def list_webhooks() -> None:
    """List all webhooks with their health."""
    with migrated_database():
        for webhook in list_endpoints(principal=OPERATOR):
            health = webhook["health"]
            state = webhook["disabled_reason"] or ("failing" if health["failing_since"] else "healthy")
            since = f"since {health['failing_since']}" if health["failing_since"] else ""
            last = f"last success {health['last_success_at'] or 'never'}"
            click.echo("  ".join(filter(None, (webhook["id"], webhook["url"], webhook["status"], state, since, last))))


@webhooks.command("listen", short_help="Forward events of a running service to a local program.")
@click.option("--forward", required=True, callback=_url, help="URL of the program, such as http://127.0.0.1:3000/hook.")
@click.option(
    "--service", default="http://127.0.0.1:8000", show_default=True, callback=_url, help="URL of the service."
)
@click.option(
    "--api-key", envvar="ORDER_SERVICE_API_KEY", help="Key with events:read; default: $ORDER_SERVICE_API_KEY."
)
@click.option("--after", type=click.IntRange(0), help="Begin after the event with this number instead of now.")
@click.option("--event", "types", type=click.Choice(EVENT_TYPES), multiple=True, help="Only this type; repeatable.")
@click.option("--state", type=click.Path(dir_okay=False, path_type=Path), help="File that stores the position.")
@click.option(
    "--payload", type=click.Choice(PAYLOADS), default=THIN, show_default=True, help="Payload of the requests."
)
@with_appcontext
def listen(
    forward: str,
    service: str,
    api_key: str | None,
    after: int | None,
    types: tuple[str, ...],
    state: Path | None,
    payload: str,
) -> None:
    """Forward the events of a running service to a local program, signed, and print a line for each.

    Run again with the same options, it continues after the last event to which the program has responded, however long
    ago that was, with the same secret. It needs no database: it reads the service's GET /events.
    """
    feed = _Feed(service, api_key, types)
    with errors_in_one_line():
        position = _Position.load(state or _default_state(feed, forward))
    if after is not None:
        position.after = str(after)
    click.echo(f"Verify the signatures with {position.secret}", err=True)
    with closing(WebhookSender(allow_private=True)) as sender, errors_in_one_line():
        try:
            _forward_events(feed, position, forward, payload, sender)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)


class _NoRedirects(HTTPRedirectHandler):
    """Makes a redirect an error: urllib would send the API key to any host."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, which raises HTTPError."""


_OPENER = build_opener(_NoRedirects)


@dataclass(frozen=True)
class _Feed:
    """The events of a running service."""

    service: str
    api_key: str | None
    types: tuple[str, ...]

    def read(self, after: str, *, wait: int = _WAIT) -> dict[str, Any]:
        """The next page: the service waits up to `wait` seconds for an event. Repeats the request while the service
        does not respond.

        Raises click.ClickException for a request that the service refuses.
        """
        query = {"after": after, "wait": wait} | ({"types": ",".join(self.types)} if self.types else {})
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        request = Request(f"{self.service.rstrip('/')}/events?{urlencode(query)}", headers=headers)
        reported = False
        while True:
            try:
                with _OPENER.open(request, timeout=_WAIT + 10) as response:
                    content = response.read()
                return _read_page(content, self.service)
            except HTTPError as error:
                with error:  # it holds the connection
                    if error.code < 500 and error.code != 429:
                        raise click.ClickException(_problem(error)) from None
                reason = f"status {error.code}"
            except (OSError, HTTPException) as error:
                reason = str(getattr(error, "reason", error))
            if not reported:
                click.echo(f"The service does not answer ({reason}); trying again.", err=True)
                reported = True
            time.sleep(_PAUSE)


def _read_page(content: bytes, service: str) -> dict[str, Any]:
    """The page in a response. Raises click.ClickException if the response is not from an order service."""
    with suppress(ValueError):
        page: Any = orjson.loads(content)
        if isinstance(page, dict) and "events" in page and "next_cursor" in page:
            return page
    raise click.ClickException(f"{service} is not an order service: GET /events returns no page of events.")


def _problem(error: HTTPError) -> str:
    if location := error.headers.get("Location"):
        return f"The service redirects to {location}. Pass its own address as --service."
    try:
        hint = " Pass a key with events:read as --api-key." if error.code in (401, 403) else ""
        return f"{error.code}: {orjson.loads(error.read())['detail']}{hint}"
    except (ValueError, KeyError):
        return f"The service answers with status {error.code}."


@dataclass
class _Position:
    """How far events have been forwarded to a program, and the secret, in a file that only its owner reads."""

    file: Path
    after: str
    secret: str

    @classmethod
    def load(cls, file: Path) -> Self:
        """The position of an earlier run, or now and a new secret. Raises click.ClickException for another file."""
        if not file.exists():
            return cls(file, _LATEST, new_webhook_secret())
        try:
            state = json.loads(file.read_text())
            return cls(file, str(state["after"]), str(state["secret"]))
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"{file} is not the state of an earlier run. Name another --state.") from None

    def save(self, after: str) -> None:
        """Store that everything up to `after` has been forwarded."""
        self.after = after
        self.file.parent.mkdir(exist_ok=True)
        temporary = self.file.with_suffix(".part")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"after": after, "secret": self.secret}))
        temporary.replace(self.file)


def _default_state(feed: _Feed, forward: str) -> Path:
    """A file for each set of options, in the directory of the SQLite database."""
    options = "\0".join((feed.service, forward, *sorted(feed.types)))
    return ROOT / "instance" / f"webhooks-listen-{sha256(options.encode()).hexdigest()[:12]}.json"


def _forward_events(feed: _Feed, position: _Position, forward: str, payload: str, sender: WebhookSender) -> None:
    if position.after == _LATEST:  # from here on, so that an interruption loses no event
        position.save(feed.read(_LATEST, wait=0)["next_cursor"])
    while True:
        page = feed.read(position.after)
        for event in page["events"]:
            attempt = _forward(event, position.secret, forward, payload, sender)
            click.echo(_line(event, attempt))
            position.save(str(event["seq"]))
        position.save(page["next_cursor"])


def _forward(event: Mapping[str, Any], secret: str, forward: str, payload: str, sender: WebhookSender) -> Attempt:
    """Send an event until the program responds, with whatever status."""
    body = render_event(
        event["type"], at=read_timestamp(event["at"]), order_id=event["order_id"], version=event["version"],
        seq=event["seq"], snapshot=orjson.dumps(event["data"]).decode(), payload=payload,
    )  # fmt: skip
    reported = False
    while True:
        headers = signed_headers(event["id"], body, timestamp=int(time.time()), secrets=[secret])
        attempt = sender.send(forward, body, headers)
        if attempt.status is not None:
            return attempt
        if not reported:
            click.echo(f"The program does not answer ({attempt.error}); trying again.", err=True)
            reported = True
        time.sleep(_PAUSE)


def _line(event: Mapping[str, Any], attempt: Attempt) -> str:
    return f"{event['seq']}  {event['type']}  {event['id']}  {attempt.status} in {attempt.milliseconds} ms"
