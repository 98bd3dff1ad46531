"""The statements of the README and of docs/ that can be checked are true."""

import json
import re

import click
import pytest
from flask import Flask
from flask.testing import FlaskClient

import gunicorn_worker
from app.config import ROOT, SETTINGS
from app.models.event import CHANGE_KEYS_MAX
from app.models.lifecycle import ACTIONS, DELIVERY_EVENTS_MAX, EVENT_TYPES, STATUSES, lifecycle_diagram
from app.models.money import PAYMENTS_MAX
from app.models.order_aggregate import HOLDS_MAX, VERSIONS_MAX
from app.models.principal import SCOPES
from app.schemas.base import ERRORS_MAX, MAX_DEPTH, Metadata, StrictSchema
from app.schemas.order import ADJUSTMENTS_MAX, ITEMS_MAX, RELATED_ORDERS_MAX, TAGS_MAX, BatchInSchema
from app.schemas.parameters import PAGE_MAX
from app.services.batches import REPLAYS_MAX, RESULTS_MAX
from app.services.order_actions import DOCUMENT_MAX
from tests.support.marks import on_sqlite

README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
PAGES = README + "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
KIB = 1024
LIMITS = [
    (
        "request head",
        f"{gunicorn_worker.MAX_HEAD_SIZE // KIB} KiB in {gunicorn_worker.HttptoolsWorker.head_timeout:.0f} s",
    ),
    ("request body", f"{StrictSchema.MAX_BODY_SIZE // KIB} KiB, a batch {BatchInSchema.MAX_BODY_SIZE // KIB**2} MiB"),
    ("request body", f"{gunicorn_worker.HttptoolsWorker.body_timeout:.0f} s, and"),
    ("request body", f"another second for each {gunicorn_worker.MIN_BODY_RATE // KIB} KiB"),
    ("JSON", f"{MAX_DEPTH} levels"),
    ("errors in a response", f"{ERRORS_MAX} of a body"),
    ("order", f"{ITEMS_MAX} lines, {ADJUSTMENTS_MAX} adjustments, {Metadata.KEYS} metadata pairs"),
    ("order", f"{TAGS_MAX} tags, {RELATED_ORDERS_MAX} related orders; {HOLDS_MAX} holds, {PAYMENTS_MAX:,} payments"),
    ("order", f"{DELIVERY_EVENTS_MAX} delivery events of a fulfillment"),
    ("order", f"{VERSIONS_MAX:,} versions; {DOCUMENT_MAX:,} characters as JSON; {CHANGE_KEYS_MAX:,} idempotency keys"),
    ("page of a list or history", f"{PAGE_MAX} entries"),
    ("orders in the response to bulk actions", f"{RESULTS_MAX // KIB**2} MiB"),
    ("orders in the response to a batch", f"{REPLAYS_MAX // KIB**2} MiB"),
    ("export", f"{SETTINGS['EXPORT_STREAMS'].default} at once"),
    ("export", f"{SETTINGS['EXPORT_SECONDS'].default} s (`EXPORT_SECONDS`)"),
    ("requests a minute and machine", f"{SETTINGS['RATE_LIMIT_CUSTOMERS'].default} of a customer"),
    ("idle connection", f"{gunicorn_worker.HttptoolsWorker.send_timeout:.0f} s without reading"),
    (
        "response that is ready",
        f"{gunicorn_worker.HttptoolsWorker.send_timeout:.0f} s to read it, and another second for each",
    ),
    ("response that is ready", f"each {gunicorn_worker.MIN_BODY_RATE // KIB} KiB"),
]


def test_the_settings_table_is_the_list_of_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)

    def shown(default: str) -> str:
        return f"`{default.replace(f'{ROOT}/', '')}`" if default else ""

    assert rows == [(name, shown(setting.default), setting.description) for name, setting in SETTINGS.items()]


def test_the_lifecycle_picture_is_that_of_the_transition_table() -> None:
    assert f"```mermaid\n{lifecycle_diagram()}\n```" in README


def test_the_table_of_actions_is_the_transition_table() -> None:
    rows = []
    for name, action in ACTIONS.items():
        statuses = "any" if action.from_statuses == STATUSES else ", ".join(action.from_statuses)
        conditions = [action.condition] if action.condition else []
        conditions += ["not on hold"] if action.blocked_by_hold else []
        rows.append(f"| {name} | `{action.event}` | {statuses} | {', '.join(conditions)} |")

    assert "\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n" in README


def test_each_event_of_an_order_is_named() -> None:
    assert set(EVENT_TYPES) <= set(re.findall(r"`(order\.\w+)`", README))


@on_sqlite
def test_the_quickstart_shows_the_real_response_to_a_create(client: FlaskClient) -> None:
    shown = json.loads(re.findall(r"^(\{\"id\":.*?\})\n```", README, re.MULTILINE | re.DOTALL)[0].replace("\n", ""))
    order = client.post("/orders", json={"customer_id": "c-123", "items": [{"item_id": "sku-1", "quantity": 2}]}).json
    differing = ("id", "number", "created_at", "updated_at")

    assert order is not None and list(order) == list(shown)
    assert {**order, **{name: shown[name] for name in differing}} == shown


@pytest.mark.parametrize("name", re.findall(r"`make ([a-z-]+)`", PAGES))
def test_each_make_target_that_is_named_exists(name: str) -> None:
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"`((?:app|deploy|migrations|tests)/[\w/.-]*|[\w.]+\.py)`", PAGES))
def test_each_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_each_picture_exists_and_is_described() -> None:
    pictures = re.findall(r"!\[([^\]]*)\]\((docs/[^)]+)\)", README)

    assert pictures
    assert all((ROOT / path).is_file() and len(description) > 20 for description, path in pictures)


@on_sqlite
def test_the_api_at_a_glance_lists_every_path(app: Flask) -> None:
    table = README.partition("## The API at a glance")[2].partition("### Lifecycle")[0]
    documented = set()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        paths = re.findall(r"[/…][\w{}/.-]*", row)
        documented |= {path.replace("…", paths[0].rsplit("/", 1)[0]) for path in paths}
    exist = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}

    assert documented == exist - {"/console/{name}", "/docs/{name}", "/problems/{slug}"}


@on_sqlite
def test_each_command_that_is_named_exists(app: Flask) -> None:
    named = set(re.findall(r"`flask (?:--app wsgi )?([a-z-]+)", PAGES))

    assert named - {"run"} <= app.cli.commands.keys() | {"db"}


@on_sqlite
def test_the_table_of_commands_lists_every_command(app: Flask) -> None:
    listed, exist = set(), set()
    for row in re.findall(r"^\| (`flask .*?) \|", README, re.MULTILINE):
        (name, *more), *others = [code.split() for code in re.findall("`(?:flask )?(.*?)`", row)]
        is_group = isinstance(app.cli.commands[name], click.Group)
        listed |= {f"{name} {below}" for below, *_ in [more, *others]} if is_group else {name}
    for name, command in app.cli.commands.items():
        exist |= {f"{name} {below}" for below in command.commands} if isinstance(command, click.Group) else {name}
    of_flask = {"run", "shell", "routes"} | {name for name in exist if name.startswith("db ")}

    assert listed - {"db upgrade"} == exist - of_flask


@pytest.mark.parametrize(("what", "limit"), LIMITS)
def test_each_limit_of_the_security_page_is_that_of_the_code(what: str, limit: str) -> None:
    assert limit in "".join(re.findall(rf"^\| {what} \| (.*) \|$", SECURITY, re.MULTILINE))


def test_each_scope_that_is_named_exists() -> None:
    assert set(re.findall(r"\b(?:orders|payments|privacy|events|webhooks):[a-z]+", PAGES)) <= SCOPES.keys()


def test_the_table_of_scopes_lists_them_all() -> None:
    assert sorted(re.findall(r"^\| `(\w+:\w+)` \| ", README, re.MULTILINE)) == sorted(SCOPES)


def test_the_limits_of_the_servers_are_those_of_their_settings() -> None:
    nginx, gunicorn = (ROOT / "deploy" / "nginx.conf").read_text(), (ROOT / "gunicorn.conf.py").read_text()
    rate, burst = re.findall(r"(\d+) a second with a burst of (\d+)", SECURITY)[0]
    [connections] = re.findall(r"^\| connections of a worker \| ([\d,]+) ", SECURITY, re.MULTILINE)
    [idle] = re.findall(r"^\| idle connection \| (\d+) s without a request", SECURITY, re.MULTILINE)

    assert f"rate={rate}r/s" in nginx and f"burst={burst} " in nginx
    assert (
        f"worker_connections = {connections.replace(',', '')} + " in gunicorn and f"\nkeepalive = {idle}\n" in gunicorn
    )
