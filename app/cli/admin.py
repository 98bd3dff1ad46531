"""Commands for operators, in this order: `doctor`, `verify`; the groups `events`, `broker`, `search`, `privacy` and
`api-keys`, each with its options; `token`."""

import math
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import TextIO

import click
import jwt
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from app.cli.common import (
    Age,
    Since,
    errors_in_one_line,
    migrated_database,
    outside_feed,
    process_count,
    progress_bar,
    run_in_processes,
)
from app.db.engine import rfc3339
from app.errors import CursorExpired, InvalidRequest, ServiceError, pluralize
from app.models.order import DONE, ID_MAX
from app.models.principal import CHANNELS_MAX, KEY_NAME_MAX, PERSONAL_DATA_SCOPES, SCOPES, ApiKey, Principal
from app.schemas.base import load_parameters
from app.schemas.parameters import CustomerPathSchema
from app.services.broker import replay
from app.services.credentials import create_api_key, key_id, list_api_keys, revoke_api_key
from app.services.diagnosis import Level, diagnose
from app.services.event_feed import prune_feed, read_ends, renumber_feed
from app.services.order_queries import as_ndjson
from app.services.personal_data import (
    ErasureState,
    continue_erasure,
    erase_customer,
    running_erasures,
    stream_personal_data,
)
from app.services.search_projection import (
    FIRST_TERM,
    finish_rebuild,
    rewrite_rows,
    sweep_terms,
    verify_search_head,
    verify_search_terms,
)
from app.services.verification import (
    OrderRange,
    count_orders,
    order_ranges,
    verify_erasures,
    verify_feed_numbers,
    verify_range,
)
from app.services.webhook_service import prune_deliveries

_LEVEL_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command(short_help="Check the installation; each line says what to do.")
@with_appcontext
def doctor() -> None:
    """Check settings, database, migrations, clock, access, worker, search, broker and webhooks.

    Each line says what to do. The exit status is 1 if there is an error: something that loses or delays orders or
    events. Run it with the settings of the service, on each of its machines.
    """
    failed = False
    with errors_in_one_line():
        for finding in diagnose(current_app.config):
            failed |= finding.level is Level.ERROR
            level = click.style(f"{finding.level:<8}", fg=_LEVEL_COLOURS[finding.level])
            click.echo(f"{level} {finding.topic:<12} {finding.text}")
    sys.exit(failed)


_jobs_option = click.option("--jobs", type=click.IntRange(1, 512), help="Number of processes; by default one per core.")


@click.command(short_help="Compare the tables, the feed and the search with the events.")
@_jobs_option
@click.option("--since", type=Since(), help="Verify only orders created or changed since: 30d, 12h, 45m, or a time.")
@with_appcontext
def verify(jobs: int | None, since: datetime | None) -> None:
    """Compare all tables, the feed and the search with the events. Differences are reported, with exit status 1.

    The service can keep running: each batch is read from one snapshot of the database.

    With --since, orders whose updated_at is older are not verified, and damage to them is not found: run it daily, and
    without --since from time to time. The time of a change is not indexed, so the rows of all orders are still read,
    but not their events: this takes about a twentieth of the time.
    """
    differences = verified = 0
    with migrated_database():
        orders = count_orders()
        work = partial(verify_range, since=since)
        with progress_bar("Orders", length=orders) as bar:
            for result in run_in_processes(work, order_ranges(), processes=jobs or process_count(orders)):
                differences += _report_differences(result.differences)
                verified += result.verified
                bar.update(min(result.orders.size, orders - bar.pos))
        for lines in chain(verify_erasures(), [verify_feed_numbers(), verify_search_head()], verify_search_terms()):
            differences += _report_differences(lines)
        click.echo(f"{pluralize(verified, 'order')} verified, {pluralize(differences, 'difference')}.")
    sys.exit(1 if differences else 0)


def _report_differences(lines: Iterable[str]) -> int:
    count = 0
    for count, line in enumerate(lines, start=1):
        click.echo(line)
    return count


events = AppGroup("events", help="Manage the feed of events and the deliveries.")


@events.command("prune", short_help="Remove old entries of the feed, and old webhook deliveries.")
@click.option("--older-than", type=Age(), required=True, help="Minimum age: 30d, 12h, 45m.")
def prune_events(older_than: timedelta) -> None:
    """Remove old entries from the feed, and old webhook deliveries that are not pending. The events and their snapshots
    stay in the history of each order.

    Readers whose cursor is older are answered 410. The command can be interrupted and run again.
    """
    prune_entries = partial(prune_feed, published=bool(current_app.config["BROKER_URL"]), older_than=older_than)
    with migrated_database():
        for singular, plural, batches in (
            ("entry of the feed", "entries of the feed", iter(prune_entries, 0)),
            ("delivery of a webhook", "deliveries of webhooks", prune_deliveries(older_than=older_than)),
        ):
            with progress_bar(plural.capitalize(), length=None) as bar:
                for pruned in batches:
                    bar.update(pruned)
            click.echo(f"{pluralize(bar.pos, singular, plural)} removed.")


@events.command("renumber", short_help="Renumber the feed after a restore.")
def renumber_events() -> None:
    """Renumber all events in the feed: run this after the database was restored to an earlier time, and before the
    service is started again.

    Otherwise the numbers assigned since that time are assigned again, to other events, and a reader that has already
    read these numbers misses them. After renumbering, each reader gets one 410 response, which says how to continue.
    Webhooks, the search and the message broker continue by themselves.
    """
    with migrated_database():
        click.echo(f"{renumber_feed()} was added to each number of the feed.")


broker = AppGroup("broker", help="Manage the publishing of events to the message broker.")


@broker.command("replay", short_help="Publish events again, or leave some out.")
@click.option("--after", type=click.IntRange(min=0), required=True, help="Number of the last event to leave out.")
def replay_events(after: int) -> None:
    """Publish the events after a number again, for a broker that has lost them; or leave out those up to it.

    The workers continue from there at once.
    """
    with migrated_database():
        try:
            replay(after=after)
        except CursorExpired:
            raise outside_feed() from None
    click.echo(f"Publishing continues with event {after + 1}.")


search = AppGroup("search", help="Manage the search of orders.")


@search.command("rebuild", short_help="Rebuild the search from the orders.")
@_jobs_option
def rebuild_search(jobs: int | None) -> None:
    """Rebuild the search from the orders, and remove what does not belong to it.

    The service and the workers can keep running: until an order is rewritten, it is found as before. The command can be
    interrupted and run again.
    """
    with migrated_database():
        seq, orders, rows = read_ends().seq, count_orders(), 0
        with progress_bar("Orders", length=orders) as bar:
            for count in run_in_processes(_rewrite_orders, order_ranges(), processes=jobs or process_count(orders)):
                rows += count
                bar.update(min(count, orders - bar.pos))
        finish_rebuild(seq)
        removed, after = 0, FIRST_TERM
        with progress_bar("Terms", length=None) as bar:
            while (sweep := sweep_terms(after)) is not None:
                after, removed = sweep.last, removed + sweep.removed
                bar.update(sweep.size)
        click.echo(
            f"{pluralize(rows, 'order')} in the search, as of number {seq} of the feed. "
            f"{pluralize(removed, 'term')} removed."
        )


def _rewrite_orders(orders: OrderRange) -> int:
    return rewrite_rows(orders.after, orders.last)


_OPERATOR = Principal("system:privacy", frozenset())

privacy = AppGroup("privacy", help="Export and erase personal data of customers.")


def _valid_customer_id(_context: click.Context, _argument: click.Parameter, value: str) -> str:
    with errors_in_one_line():
        value.encode()
    try:
        valid: str = load_parameters(CustomerPathSchema(), {"customer_id": value})["customer_id"]
    except InvalidRequest as error:
        raise click.BadParameter(error.members["errors"][0]["detail"]) from None
    return valid


_customer_argument = click.argument("customer_id", callback=_valid_customer_id)


@privacy.command("export", short_help="Export all that is stored about a customer.")
@_customer_argument
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8"),
    default="-",
    help="File to write to; standard output by default.",
)
def export_data(customer_id: str, output: TextIO) -> None:
    """Export all that is stored about a customer, one JSON object a line: orders, their events, deliveries of webhooks,
    a running erasure."""
    with migrated_database():
        lines = 0
        for line in as_ndjson(stream_personal_data(customer_id, principal=_OPERATOR)):
            output.write(line)
            lines += 1
        output.flush()  # reports a full disk here, not when the file is closed
        click.echo(f"{pluralize(lines, 'line')} exported.", err=True)


@privacy.command("erase")
@_customer_argument
def erase_data(customer_id: str) -> None:
    """Erase the personal data of a customer without open orders. Exit status 1 if it could not be completed."""
    with migrated_database():
        try:
            erasure = erase_customer(customer_id, principal=_OPERATOR, seconds=0)
        except ServiceError as error:
            raise click.ClickException(error.detail) from None
        _report_erasures([_complete_erasure(erasure.id)])


@privacy.command("resume")
def resume_erasures() -> None:
    """Complete all erasures that are running.

    The command can be interrupted and run again, even in several processes at once. Exit status 1 if an erasure could
    not be completed: other processes kept reading or writing the SQLite file, or an order was reopened meanwhile.
    """
    with migrated_database():
        _report_erasures([_complete_erasure(erasure_id) for erasure_id in running_erasures()])


def _complete_erasure(erasure_id: str) -> ErasureState:
    """Continue until the erasure is done, or waits for a reopened order or for the SQLite file."""
    return continue_erasure(erasure_id, seconds=math.inf, rewrite_always=True)


def _report_erasures(states: list[ErasureState]) -> None:
    for state in states:
        click.echo(f"Erasure {state.id}: {pluralize(state.orders, 'order')} erased, {state.status}.")
    click.echo(f"{pluralize(len(states), 'erasure')}, {sum(state.status != DONE for state in states)} not done.")
    sys.exit(any(state.status != DONE for state in states))


api_keys = AppGroup("api-keys", help="Create, list and revoke the API keys of services.")


def _valid_name(_: click.Context, option: click.Parameter, value: str) -> str:
    limit = KEY_NAME_MAX if option.name == "name" else ID_MAX
    if not 1 <= len(value) <= limit or not value.isprintable():
        raise click.BadParameter(f"must have 1 to {limit} printable characters.")
    return value


def _valid_channels(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> set[str]:
    if len(channels := {_valid_name(context, option, value) for value in values}) > CHANNELS_MAX:
        raise click.BadParameter(f"a key is bound to at most {CHANNELS_MAX} channels.")
    return channels


_scope_option = click.option(
    "--scope",
    "scopes",
    type=click.Choice(list(SCOPES)),
    multiple=True,
    required=True,
    help="Scope of the credentials; repeatable.",
)


@api_keys.command("create")
@click.option(
    "--name",
    required=True,
    callback=_valid_name,
    help="Name of the service; keys with the same name are one principal.",
)
@_scope_option
@click.option(
    "--channel",
    "channels",
    multiple=True,
    callback=_valid_channels,
    help="Bind the key to a channel: it has access to its orders only. Repeatable; all orders by default.",
)
@click.option("--expires-in", type=Age(), help="Lifetime: 90d, 12h. Unlimited by default.")
def create_key(name: str, scopes: tuple[str, ...], channels: set[str], expires_in: timedelta | None) -> None:
    """Create a key and print it once, on the last line. Send it as `Authorization: Bearer KEY`."""
    if channels and (useless := [scope for scope in PERSONAL_DATA_SCOPES if scope in scopes]):
        raise click.BadParameter(
            f"a customer's personal data is in orders of all channels. Create another key, without channels, for "
            f"{' and '.join(useless)}.",
            param_hint="--channel",
        )
    with migrated_database():
        key = create_api_key(name, scopes=list(set(scopes)), expires_in=expires_in, channels=channels)
        try:
            click.echo("Keep this key: it is stored as a hash, and cannot be shown again.", err=True)
            click.echo(key)
        except OSError:  # a full disk or a closed pipe: nobody has received the key
            revoke_api_key(key_id(key))
            raise


@api_keys.command("list")
def list_keys() -> None:
    """List all keys without their secrets."""
    with migrated_database():
        for key in list_api_keys():
            used = f"last used {rfc3339(key.last_used_at)}" if key.last_used_at else "never used"
            channels = f"  channels {', '.join(key.channels)}" if key.channels is not None else ""
            click.echo(f"{key.id}  {key.name}  {' '.join(key.scopes)}{channels}  {_key_state(key)}  {used}")


def _key_state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {rfc3339(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.expires_at > datetime.now(UTC) else 'expired'} {rfc3339(key.expires_at)}"


@api_keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Revoke the key with this id. It takes effect within a second."""
    with migrated_database():
        if not revoke_api_key(key_id):
            raise click.ClickException(f"No valid key has the id {key_id}. `flask api-keys list` lists all keys.")
        click.echo(f"{key_id} is revoked.")


@click.command()
@click.option("--customer", required=True, callback=_valid_name, help="Customer id, the `sub` of the token.")
@_scope_option
@click.option("--expires-in", type=Age(), default="15m", show_default=True, help="Lifetime.")
@with_appcontext
def token(customer: str, scopes: tuple[str, ...], expires_in: timedelta) -> None:
    """Sign a customer's token with a key of your own, for development.

    \b
    openssl genpkey -algorithm ed25519 -out key.pem
    export JWT_SIGNING_KEY="$(cat key.pem)" JWT_PUBLIC_KEY="$(openssl pkey -in key.pem -pubout)"
    export JWT_ISSUER=development JWT_AUDIENCE=orders
    """
    config = current_app.config
    if missing := [name for name in ("JWT_SIGNING_KEY", "JWT_ISSUER", "JWT_AUDIENCE") if not config[name]]:
        raise click.ClickException(
            f"{' and '.join(missing)} must be set, here and for the service. `flask token --help` shows how."
        )
    now = datetime.now(UTC)
    claims = {
        "sub": customer,
        "scope": " ".join(scopes),
        "iss": config["JWT_ISSUER"],
        "aud": config["JWT_AUDIENCE"],
        "iat": now,
        "exp": now + expires_in,
    }
    for algorithm in ("EdDSA", "ES256", "RS256"):
        try:
            signed = jwt.encode(claims, config["JWT_SIGNING_KEY"], algorithm=algorithm)
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError):
            continue  # the key is for another algorithm
        with errors_in_one_line():
            click.echo(signed)
        return
    raise click.ClickException("JWT_SIGNING_KEY must be a private key in PEM: RSA, P-256 or Ed25519.")
