"""Webhook endpoints and their deliveries: create, change and delete endpoints, list deliveries, send them again."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import gevent
import gevent.socket
import orjson
from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import aliased

from app.db.engine import db, rfc3339
from app.db.statements import in_transaction, read_rows
from app.errors import EventNotFound, Forbidden, InvalidRequest, TooManyWebhooks, WebhookNotFound
from app.models import DELIVERIES, OUTBOX, FeedEntry, FeedHead, Order, OrderEvent, WebhookDelivery, WebhookEndpoint
from app.models.order_id import LOWEST_ID, first_order_id, new_id, parse_uuid, time_ago
from app.models.principal import Principal
from app.models.webhook import (
    DELETED,
    ENABLED,
    FAILED_LITERAL,
    FAILING,
    GONE,
    PAUSED,
    PENDING,
    PENDING_LITERAL,
    REPLAY_MAX,
    RETRY_MAX,
    STATUS_LITERALS,
    TEST,
    RefusedURL,
    check_addresses,
    includes_channels,
    parse_webhook_url,
)
from app.services.credentials import SecretStore, new_webhook_secret
from app.services.webhook_queue import QUEUED, delivery_document, queue_events, queue_rows

ENDPOINTS_MAX = 200  # the worker reads all of them for each event
ROTATION = timedelta(hours=24)  # during which the previous secret signs too
RETENTION = timedelta(days=30)  # of finished deliveries
_PRUNE_MAX = 1_000  # deliveries of one endpoint that one transaction reads
END_PAUSES_SECONDS = 3.0  # for which a request ends the pauses of deliveries
# Seconds for the resolution of a name: the system's resolver waits 10 s for each server that does not respond.
RESOLVE_SECONDS = 5.0
_PAUSE_MAX = RETRY_MAX + timedelta(hours=1)  # clocks of two machines may differ by the rest
_EXISTS = WebhookEndpoint.status != DELETED

# The addresses of a host. Raises OSError.
Resolver = Callable[[str, int], Sequence[str]]


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host. Other greenlets run meanwhile, and `gevent.Timeout` bounds it, whether or not the
    process is patched. Raises OSError.
    """
    addresses = gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(address[0] for *_, address in addresses))


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """How secrets are stored, and where webhooks may be sent (`check_addresses`)."""

    secrets: SecretStore
    allow_private: bool
    resolve: Resolver = resolve_host


def webhook_rules(config: Mapping[str, Any]) -> WebhookRules:
    """The rules according to the settings."""
    return WebhookRules(SecretStore(config["SECRET_KEY"]), config["WEBHOOKS_ALLOW_PRIVATE"])


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Delivery documents as JSON, and the id of the last one where more follow."""

    documents: list[str]
    next_after: str | None


def create_endpoint(content: Mapping[str, Any], *, principal: Principal, rules: WebhookRules) -> dict[str, Any]:
    """Create an endpoint, which receives the events from now on. Returns its document with the secret, which is not
    shown again.

    Raises InvalidRequest for a URL that is refused, Forbidden for channels that the principal is not bound to, and
    TooManyWebhooks.
    """
    _check_url(content["url"], rules)
    secret, now = new_webhook_secret(), datetime.now(UTC)
    endpoint = WebhookEndpoint(
        id=new_id(now),
        url=content["url"],
        description=content.get("description"),
        events=content.get("events"),
        channels=_permitted_channels(content.get("channels"), principal),
        payload=content["payload"],
        status=ENABLED,
        secret=rules.secrets.seal(secret),
        created_by=principal.id,
        created_at=now,
        updated_at=now,
        consecutive_failures=0,
    )
    return in_transaction(lambda: _add(endpoint)) | {"secret": secret}


def _add(endpoint: WebhookEndpoint) -> dict[str, Any]:
    if db.session.scalars(select(func.count()).select_from(WebhookEndpoint).where(_EXISTS)).one() >= ENDPOINTS_MAX:
        raise TooManyWebhooks(f"There are {ENDPOINTS_MAX} webhooks, the maximum. Delete those that are not used.")
    endpoint.last_seq = db.session.scalars(select(FeedHead.seq)).one()
    db.session.add(endpoint)
    db.session.flush()
    return endpoint_document(endpoint)


def _check_url(text: str, rules: WebhookRules) -> None:
    """Check a URL as every delivery does. Raises InvalidRequest."""
    try:
        url = parse_webhook_url(text, allow_private=rules.allow_private)
        with gevent.Timeout(RESOLVE_SECONDS, TimeoutError):  # TimeoutError is an OSError
            addresses = rules.resolve(url.host, url.port)
        check_addresses(addresses, allow_private=rules.allow_private)
    except RefusedURL as error:
        detail = str(error)
    except OSError:
        detail = "The host name cannot be resolved."
    else:
        return
    raise InvalidRequest("The URL is refused.", errors=[{"pointer": "#/url", "detail": detail}])


def _permitted_channels(channels: list[str] | None, principal: Principal) -> list[str] | None:
    """The channels of an endpoint: by default, those that the principal is bound to. Raises Forbidden for others."""
    if channels is None and principal.channels is not None:
        return sorted(principal.channels)
    if not _may_manage(principal, channels):
        names = ", ".join(sorted(principal.channels or ()))
        raise Forbidden(f"This API key manages webhooks of its channels only. `channels` may contain: {names}.")
    return channels


def _may_manage(principal: Principal, channels: list[str] | None) -> bool:
    """Whether the principal may see and change an endpoint with these channels."""
    return includes_channels(principal.channels, channels)


def list_endpoints(*, principal: Principal) -> list[dict[str, Any]]:
    """All endpoints that the principal can manage, oldest first."""
    rows = read_rows(select(WebhookEndpoint.__table__).where(_EXISTS).order_by(WebhookEndpoint.id))
    return [endpoint_document(row) for row in rows if _may_manage(principal, row.channels)]


def count_endpoints() -> dict[str, int]:
    """The number of endpoints that are `healthy`, `failing`, and `disabled` because they failed."""
    failing = WebhookEndpoint.failing_since.is_not(None)
    [row] = read_rows(
        select(
            func.count().filter(WebhookEndpoint.status == ENABLED, ~failing).label("healthy"),
            func.count().filter(WebhookEndpoint.status == ENABLED, failing).label("failing"),
            func.count().filter(_EXISTS, WebhookEndpoint.disabled_reason.in_((GONE, FAILING))).label("disabled"),
        )
    )
    return dict(row._mapping)


def get_endpoint(endpoint_id: str, *, principal: Principal) -> dict[str, Any]:
    """An endpoint. Raises WebhookNotFound if it does not exist or is of other channels."""
    parsed_id = parse_uuid(endpoint_id)
    query = select(WebhookEndpoint.__table__).where(WebhookEndpoint.id == parsed_id, _EXISTS)
    rows = read_rows(query) if parsed_id else []
    for row in rows:
        if _may_manage(principal, row.channels):
            return endpoint_document(row)
    raise _not_found(endpoint_id)


def update_endpoint(
    endpoint_id: str, patch: Mapping[str, Any], *, principal: Principal, rules: WebhookRules
) -> dict[str, Any]:
    """Change the members in `patch`; None removes an optional one. Raises what `create_endpoint` does.

    An endpoint whose URL is changed, or whose status is set to enabled even if it was, starts without failures. It
    receives pending deliveries, without the pauses after failed attempts, and the events since it was disabled.
    """
    if "url" in patch:
        _check_url(patch["url"], rules)
    document = in_transaction(lambda: _update(_lock(endpoint_id, principal), patch, principal))
    if "url" in patch or patch.get("status") == ENABLED:
        _end_pauses(document["id"])
    return document


def _update(endpoint: WebhookEndpoint, patch: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
    for name in ("url", "description", "events", "payload"):
        if name in patch:
            setattr(endpoint, name, patch[name])
    if "channels" in patch:
        channels = _permitted_channels(patch["channels"], principal)
        if not includes_channels(channels, endpoint.channels):
            # A key that is bound to the remaining channels would see the deliveries of the removed ones.
            detail = (
                "Channels can be added, not removed: there may be deliveries of their events. Create another webhook."
            )
            raise InvalidRequest("The channels are refused.", errors=[{"pointer": "#/channels", "detail": detail}])
        endpoint.channels = channels
    if patch.get("status") == ENABLED:
        endpoint.enable()
    elif "status" in patch and endpoint.status == ENABLED:
        endpoint.disable(PAUSED)
    if "url" in patch:
        endpoint.reset_failures()
    endpoint.updated_at = datetime.now(UTC)
    return endpoint_document(endpoint)


def _end_pauses(endpoint_id: str) -> None:
    """Make the pending deliveries due now: their next attempts may be hours away.

    Each batch commits by itself. After END_PAUSES_SECONDS the rest keeps its pauses.
    """
    now, deadline, delivery = datetime.now(UTC), time.monotonic() + END_PAUSES_SECONDS, aliased(WebhookDelivery)
    waiting = delivery.status == PENDING_LITERAL, delivery.lease.is_(None), delivery.next_attempt_at > now
    oldest = _deliveries(delivery, endpoint_id, *waiting).order_by(delivery.next_attempt_at)
    oldest = oldest.with_for_update(skip_locked=True, of=delivery)  # a worker is claiming or storing a locked one
    while in_transaction(partial(_change_deliveries, oldest, {"next_attempt_at": now})) == REPLAY_MAX:
        if time.monotonic() >= deadline:
            break


def delete_endpoint(endpoint_id: str, *, principal: Principal) -> None:
    """Delete an endpoint; it receives nothing more, except what is being sent, within a second. Raises WebhookNotFound.

    This deletes a batch of its deliveries; `prune_deliveries` deletes the rest.
    """

    def mark_deleted() -> str:
        endpoint = _lock(endpoint_id, principal)
        endpoint.status = DELETED
        return endpoint.id

    deleted_id = in_transaction(mark_deleted)
    in_transaction(partial(_prune, deleted_id, after=LOWEST_ID, before=LOWEST_ID))


def rotate_secret(endpoint_id: str, *, principal: Principal, rules: WebhookRules) -> dict[str, Any]:
    """Replace the secret of an endpoint. Returns its document with the new secret, which is not shown again.

    Requests are signed with both secrets for ROTATION. Raises WebhookNotFound.
    """
    secret = new_webhook_secret()
    sealed, now = rules.secrets.seal(secret), datetime.now(UTC)

    def rotate() -> dict[str, Any]:
        endpoint = _lock(endpoint_id, principal)
        endpoint.previous_secret, endpoint.secret = endpoint.secret, sealed
        endpoint.previous_secret_until = now + ROTATION
        endpoint.updated_at = now
        return endpoint_document(endpoint)

    return in_transaction(rotate) | {"secret": secret}


def send_test(endpoint_id: str, *, principal: Principal) -> None:
    """Queue an event of the type webhook.test for an endpoint, and end its pause. Raises WebhookNotFound."""

    def queue() -> None:
        endpoint = _lock(endpoint_id, principal)
        endpoint.retry_at = None
        queue_rows(endpoint.id, [{"type": TEST, "data": {"endpoint_id": endpoint.id}}], again=False)

    in_transaction(queue)


def list_deliveries(
    endpoint_id: str, *, principal: Principal, status: str | None = None, after: str | None, limit: int
) -> DeliveryPage:
    """Up to `limit` deliveries of an endpoint, newest first, after the one with the id `after`.

    Raises WebhookNotFound.
    """
    parsed_id = get_endpoint(endpoint_id, principal=principal)["id"]
    query = select_deliveries(parsed_id, status=status)
    if after is not None:
        query = query.where(DELIVERIES.c.id < after)
    rows = read_rows(query.limit(limit + 1))
    documents = [orjson.dumps(delivery_document(row)).decode() for row in rows[:limit]]
    return DeliveryPage(documents, rows[limit - 1].id if rows[limit:] else None)


def select_deliveries(endpoint_id: str, *, status: str | None) -> Select[Any]:
    """The query for the deliveries of an endpoint, newest first."""
    query = select(DELIVERIES).where(DELIVERIES.c.endpoint_id == endpoint_id).order_by(DELIVERIES.c.id.desc())
    # A literal, which partial indexes serve: with a parameter, the few deliveries that are pending or have failed are
    # searched among the millions that have succeeded.
    return query if status is None else query.where(DELIVERIES.c.status == STATUS_LITERALS[status])


def replay_deliveries(endpoint_id: str, selection: Mapping[str, Any], *, principal: Principal) -> int:
    """Queue events again, and return their number.

    `selection` has the `event_id` of one event of any type; or `from_seq` and `to_seq`, for the events of the feed that
    match the endpoint's filters; or `failed_since`, for up to REPLAY_MAX deliveries that have failed since then. Events
    that the worker has not reached for this endpoint are left to it: they would be sent before the earlier events of
    their orders. Raises WebhookNotFound, and EventNotFound for an event that does not exist, is of another channel, or
    that the worker has not reached.
    """

    def replay() -> int:
        endpoint = _lock(endpoint_id, principal)
        if "event_id" in selection:
            return queue_rows(endpoint.id, [_find_event(endpoint, selection["event_id"])], again=True)
        if "failed_since" in selection:
            return _replay_failed(endpoint, since=selection["failed_since"])
        after, until = selection["from_seq"] - 1, min(selection["to_seq"], endpoint.last_seq)
        return queue_events(endpoint, after=after, until=until, types=endpoint.events, again=True)

    return in_transaction(replay)


def _find_event(endpoint: WebhookEndpoint, event_id: str) -> dict[str, Any]:
    order_id, _, version = event_id.partition(":")
    of_entry = (FeedEntry.order_id == OrderEvent.order_id) & (FeedEntry.version == OrderEvent.version)
    pending = select(OUTBOX.c.order_id).where(
        OUTBOX.c.order_id == OrderEvent.order_id, OUTBOX.c.version == OrderEvent.version
    )
    query = (
        select(
            OrderEvent.order_id, OrderEvent.version, OrderEvent.type, FeedEntry.seq, Order.channel,
            pending.exists().label("is_pending"),
        )
        .join(Order, Order.id == OrderEvent.order_id)
        .outerjoin(FeedEntry, of_entry)
        .where(OrderEvent.order_id == parse_uuid(order_id), OrderEvent.version == int(version))
    )  # fmt: skip
    row = db.session.execute(query).first()
    if row is None or (endpoint.channels is not None and row.channel not in endpoint.channels):
        raise EventNotFound(f"Event {event_id} was not found.")
    if row.is_pending or (row.seq or 0) > endpoint.last_seq:  # an event without a number has been pruned
        raise EventNotFound(
            f"Event {event_id} has not been queued for this webhook yet. An enabled webhook receives it in order."
        )
    return {"order_id": row.order_id, "version": row.version, "type": row.type, "seq": row.seq}


def _replay_failed(endpoint: WebhookEndpoint, *, since: datetime) -> int:
    delivery, other = aliased(WebhookDelivery), aliased(WebhookDelivery)
    oldest = select(other.id).where(
        other.endpoint_id == endpoint.id, other.status == FAILED_LITERAL, other.finished_at >= since
    )
    oldest = oldest.order_by(other.finished_at).limit(REPLAY_MAX)
    failed = _deliveries(delivery, endpoint.id, delivery.status == FAILED_LITERAL, delivery.id.in_(oldest))
    failed = failed.order_by(*_lock_order(delivery)).with_for_update(of=delivery)
    return _change_deliveries(failed, QUEUED | {"next_attempt_at": datetime.now(UTC), "seq": _PRESENT_SEQ})


# The current number of a delivery's event, even if the feed was renumbered; the stored one if its entry was removed.
_PRESENT_SEQ = func.coalesce(
    select(FeedEntry.seq)
    .where(FeedEntry.order_id == DELIVERIES.c.order_id, FeedEntry.version == DELIVERIES.c.version)
    .correlate(DELIVERIES)
    .scalar_subquery(),
    DELIVERIES.c.seq,
)


def _lock_order(delivery: Any) -> tuple[Any, ...]:
    """The order in which all transactions lock the deliveries of an endpoint, so that they do not deadlock."""
    return delivery.order_id, delivery.version, delivery.id


def _deliveries(delivery: Any, endpoint_id: str, *conditions: ColumnElement[bool]) -> Select[Any]:
    return select(delivery.endpoint_id, delivery.id).where(delivery.endpoint_id == endpoint_id, *conditions)


def _change_deliveries(deliveries: Select[Any], values: Mapping[str, Any]) -> int:
    """Change up to REPLAY_MAX deliveries, the first ones, and return their number.

    The query locks them: a row that waits for another transaction is then compared with its conditions again.
    """
    first = deliveries.limit(REPLAY_MAX).cte("first")
    of_delivery = DELIVERIES.c.endpoint_id == first.c.endpoint_id, DELIVERIES.c.id == first.c.id
    changed = update(DELIVERIES).where(*of_delivery).values(dict(values)).returning(DELIVERIES.c.id)
    return len(db.session.scalars(changed).all())


def end_impossible_pauses() -> bool:
    """End pauses that are longer than RETRY_MAX: a worker whose clock was ahead, perhaps by years, has stored them.

    Returns whether there may be more.
    """
    now = datetime.now(UTC)
    latest, endpoint, delivery = now + _PAUSE_MAX, WebhookEndpoint, aliased(WebhookDelivery)
    of_endpoint = or_(endpoint.retry_at > latest, endpoint.reported_at > latest)
    locked = select(endpoint.id).where(of_endpoint).order_by(endpoint.id).with_for_update()
    ended = update(endpoint).where(endpoint.id.in_(locked)).values(retry_at=None, reported_at=None)
    in_transaction(lambda: db.session.execute(ended.execution_options(synchronize_session=False)))
    more = False
    for [endpoint_id] in read_rows(select(endpoint.id)):
        is_late = delivery.status == PENDING_LITERAL, delivery.next_attempt_at > latest
        late = _deliveries(delivery, endpoint_id, *is_late).with_for_update(skip_locked=True, of=delivery)
        count = in_transaction(partial(_change_deliveries, late, {"next_attempt_at": now}))
        more = more or count == REPLAY_MAX
    return more


def prune_deliveries(*, older_than: timedelta = RETENTION) -> Iterator[int]:
    """Delete finished deliveries that were queued longer ago, and all deliveries of deleted endpoints, in batches.

    Yields the number of deleted deliveries after each batch: 0 if all deliveries of the batch are pending.
    """
    before = first_order_id(time_ago(older_than))
    for [endpoint_id] in read_rows(select(WebhookEndpoint.id)):
        after: str | None = LOWEST_ID
        while after is not None:
            count, after = in_transaction(partial(_prune, endpoint_id, after=after, before=before))
            yield count


def _prune(endpoint_id: str, *, after: str, before: str) -> tuple[int, str | None]:
    """Delete a batch. Returns its number, and the last id that it has read if there are more."""
    status = select(WebhookEndpoint.status).where(WebhookEndpoint.id == endpoint_id)
    deleted = db.session.scalar(status) == DELETED
    if deleted:  # the row is deleted after the deliveries, and locked before them, as in all transactions
        db.session.execute(status.with_for_update())
    remaining = [DELIVERIES.c.endpoint_id == endpoint_id, DELIVERIES.c.id > after]
    if not deleted:
        remaining.append(DELIVERIES.c.id < before)
    # The end of the batch first: an endpoint that was down for days has millions of pending deliveries to skip.
    last = db.session.scalar(
        select(DELIVERIES.c.id).where(*remaining).order_by(DELIVERIES.c.id).offset(_PRUNE_MAX - 1).limit(1)
    )
    batch = remaining if last is None else [*remaining, DELIVERIES.c.id <= last]
    if not deleted:
        batch.append(DELIVERIES.c.status != PENDING)
    locked = select(DELIVERIES.c.id).where(*batch).order_by(*_lock_order(DELIVERIES.c)).with_for_update()
    # The batch again: otherwise the planner may compare all deliveries of the endpoint with the locked ones.
    pruned = delete(DELIVERIES).where(*batch, DELIVERIES.c.id.in_(locked))
    count = db.session.connection().execute(pruned).rowcount
    if deleted and last is None:
        db.session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id))
    return count, last


def _lock(endpoint_id: str, principal: Principal) -> WebhookEndpoint:
    parsed_id = parse_uuid(endpoint_id)
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == parsed_id, _EXISTS).with_for_update()
    endpoint = db.session.scalar(query) if parsed_id else None
    if endpoint is None or not _may_manage(principal, endpoint.channels):
        raise _not_found(endpoint_id)
    return endpoint


def _not_found(endpoint_id: str) -> WebhookNotFound:
    return WebhookNotFound(f"Webhook {endpoint_id[:64]} was not found.")


def endpoint_document(endpoint: Any) -> dict[str, Any]:
    """The document of an endpoint, given as a model or as a row. It does not contain the secret."""
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "description": endpoint.description,
        "events": endpoint.events,
        "channels": endpoint.channels,
        "payload": endpoint.payload,
        "status": endpoint.status,
        "disabled_reason": endpoint.disabled_reason,
        "health": {
            "consecutive_failures": endpoint.consecutive_failures,
            **{
                name: _time(getattr(endpoint, name))
                for name in ("failing_since", "retry_at", "last_success_at", "last_failure_at")
            },
        },
        "previous_secret_until": _time(endpoint.previous_secret_until),
        "created_at": _time(endpoint.created_at),
        "updated_at": _time(endpoint.updated_at),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
