"""Importing orders from NDJSON: bodies of `POST /orders`, and exported documents, which keep their state."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from app.db.errors import DATABASE_ERRORS, is_unavailable
from app.db.types import read_timestamp, rfc3339
from app.errors import (
    InternalError,
    InvalidRequest,
    MalformedJSON,
    OrderTooLarge,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.money import InvalidPrices
from app.models.order import CONTENT, RECORDS
from app.models.order_aggregate import CLOCK_SKEW
from app.models.order_id import first_order_id, hash_reference
from app.models.order_item import line_columns
from app.models.principal import Principal
from app.schemas.order import OrderInSchema
from app.schemas.order_import import ExportedOrderSchema
from app.schemas.strict_json import body_errors, load_body, parse_json
from app.services.document_checks import ID_TIME_LENGTH, inconsistent_members
from app.services.order_actions import DOCUMENT_MAX
from app.services.order_document import parse_order, render_order
from app.services.order_inserts import NewOrder, find_stored_ids, restore_orders
from app.services.order_service import CreateRequest, content_columns, create_orders, item_columns, order_fingerprint

_EXPECTED_MAX = 500  # characters of a value in an error detail
_BODY, _DOCUMENT = OrderInSchema(), ExportedOrderSchema()


@dataclass(frozen=True, slots=True)
class FileLine:
    """A line of the file, counted from 1."""

    number: int
    text: bytes


@dataclass(slots=True)
class OrderImport:
    """A running import: the principal of the orders, and how many lines were created, existed already or failed."""

    principal: Principal
    created: int = 0
    existing: int = 0
    failed: int = 0
    _occurrences: Counter[str] = field(default_factory=Counter)

    def store(self, lines: Sequence[FileLine]) -> Iterator[str]:
        """Store a batch of lines, and yield an error message for each line that fails.

        Raises ServiceUnavailable, RequestInFlight, and database errors that are not caused by one line. This commits.
        """
        requests: list[tuple[FileLine, CreateRequest]] = []
        restored: list[tuple[FileLine, NewOrder]] = []
        for line in lines:
            try:
                self._load(line, requests, restored)
            except ServiceError as error:
                yield self._error_message(line, error)
        outcomes = create_orders([request for _, request in requests])
        for (line, _), outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, ServiceUnavailable | RequestInFlight):
                raise outcome
            if isinstance(outcome, ServiceError):
                yield self._error_message(line, outcome)
            else:
                self._count(created=not outcome.replayed)
        yield from self._restore(restored)

    def _load(
        self, line: FileLine, requests: list[tuple[FileLine, CreateRequest]], restored: list[tuple[FileLine, NewOrder]]
    ) -> None:
        data = parse_json(line.text.strip())
        if isinstance(data, dict) and "id" in data:
            order = restore_order(load_body(_DOCUMENT, data), document=data, principal=self.principal.id)
            restored.append((line, order))
            return
        body = load_body(_BODY, data)
        key = None if body.get("external_ref") else self._idempotency_key(line)
        requests.append((line, CreateRequest(body, self.principal, idempotency_key=key, reference_as_key=True)))

    def _idempotency_key(self, line: FileLine) -> str:
        """The key of a line without a reference: its text, and how often the text has occurred in the file."""
        digest = blake2b(line.text.strip(), digest_size=16).hexdigest()
        self._occurrences[digest] += 1
        return f"import:{digest}:{self._occurrences[digest]}"

    def _restore(self, restored: Sequence[tuple[FileLine, NewOrder]]) -> Iterator[str]:
        orders: dict[str, NewOrder] = {}
        for _, order in restored:
            orders.setdefault(order.id, order)  # the first of several lines with the same order
        stored, errors = _store(list(orders.values()))
        existing = find_stored_ids([order for order in orders.values() if order.id not in stored])
        for line, order in restored:
            if order.id in stored or order.id in existing:
                self._count(created=order.id in stored and orders[order.id] is order)
            else:
                conflict = "Another order has this external_ref or number."
                yield self._error_message(line, InternalError(errors.get(order.id, conflict)))

    def _count(self, *, created: bool) -> None:
        self.created += created
        self.existing += not created

    def _error_message(self, line: FileLine, error: ServiceError) -> str:
        self.failed += 1
        errors: list[dict[str, Any]] = error.members.get("errors", [])
        messages = " ".join(f"{entry['pointer']}: {entry['detail']}" for entry in errors)
        cause = str(error.__cause__).partition("\n")[0] if error.__cause__ else ""
        detail = error.detail
        if isinstance(error, MalformedJSON):  # it speaks of a body, and counts the lines in it
            detail = detail.replace("at line 1, column", "at column").replace("of the body", "of the line")
        return f"line {line.number}: {messages or cause or detail}"


def _store(orders: Sequence[NewOrder]) -> tuple[set[str], dict[str, str]]:
    """The ids of the stored orders, and the database's error messages for others, by id."""
    try:
        return (restore_orders(orders), {}) if orders else (set(), {})
    except DATABASE_ERRORS as error:
        if is_unavailable(error):
            raise
        if len(orders) == 1:
            return set(), {orders[0].id: str(error).partition("\n")[0]}
    stored, errors = set[str](), dict[str, str]()
    for order in orders:  # the statement failed for all: find the orders that cause it
        one_stored, one_error = _store([order])
        stored |= one_stored
        errors |= one_error
    return stored, errors


def restore_order(data: Mapping[str, Any], *, document: Mapping[str, Any], principal: str) -> NewOrder:
    """Build an order from its exported document: `document` is parsed, `data` is loaded by `ExportedOrderSchema`.

    Raises InvalidRequest where the document contradicts itself or differs from what its columns render to, since such
    an order would fail `flask verify`, and where its times are in the future. Raises OrderTooLarge.
    """
    _require_past(data)
    content, lines, document = content_columns(data), item_columns(data), CONTENT | RECORDS | dict(document)
    # The loaded records have their members in the order in which the service renders them.
    normalized = {**document, **{name: _with_text_times(data.get(name, absent)) for name, absent in RECORDS.items()}}
    reference_hash = hash_reference(content["external_ref"], principal=principal)
    order = parse_order(normalized, principal=principal, external_ref_hash=reference_hash)
    try:
        order.derive()
    except InvalidPrices as error:
        raise InvalidRequest("The prices do not add up.", errors=list(body_errors(error.messages))) from None
    rendered = render_order(vars(order))
    if len(rendered) > 2 * DOCUMENT_MAX:  # the changes that end an order may exceed the maximum
        raise OrderTooLarge(f"The order has {len(rendered):,} characters; the maximum is {DOCUMENT_MAX:,}.")
    _require_consistent(orjson.loads(rendered), document)
    columns = order.columns() | {"idempotency_key_hash": None, "fingerprint": order_fingerprint(content, lines)}
    return NewOrder(columns, line_columns(order.items), rendered)


def _require_consistent(rendered: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    wrong = inconsistent_members(document)
    differing = [name for name in rendered if name in wrong or rendered[name] != document.get(name)]
    if differing:
        errors = [
            {"pointer": f"#/{name}", "detail": _contradiction(name, rendered, document=document)} for name in differing
        ]
        raise InvalidRequest("Members of the document contradict each other.", errors=errors)


def _contradiction(name: str, rendered: Mapping[str, Any], *, document: Mapping[str, Any]) -> str:
    """The error detail of a member, with the value that it should have if that follows from the others."""
    if name == "id":
        time = first_order_id(read_timestamp(rendered["created_at"]))[:ID_TIME_LENGTH]
        return f"This must be in lower case and begin with {time}, the time of created_at (UUIDv7)."
    expected = orjson.dumps(rendered[name]).decode()
    if rendered[name] == document.get(name) or len(expected) > _EXPECTED_MAX:
        return "This contradicts other members of the document."
    return f"This contradicts other members of the document. It should be {expected}."


def _require_past(data: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if a recorded time is in the future, or later than `updated_at`."""
    now = datetime.now(UTC)
    limits = {"created_at": now, "updated_at": now, **dict.fromkeys(RECORDS, data["updated_at"])}
    if data["late"]:
        limits["ship_by"] = data["updated_at"]
    errors = [
        {"pointer": f"#/{name}", "detail": "This must not contain a time in the future or after updated_at."}
        for name, limit in limits.items()
        if any(time > limit + CLOCK_SKEW for time in _past_times(data.get(name)))
    ]
    if errors:
        raise InvalidRequest("The document contains times in the future. Correct what `errors` lists.", errors=errors)


def _past_times(value: Any) -> Iterator[datetime]:
    """The times in the value, except the `until` of holds."""
    if isinstance(value, datetime):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _past_times(part) if name != "until" else ()
    elif isinstance(value, list):
        for part in value:
            yield from _past_times(part)


def _with_text_times(value: Any) -> Any:
    """The value as it is stored in JSON, with times as RFC 3339 text."""
    if isinstance(value, Mapping):
        return {name: _with_text_times(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_text_times(part) for part in value]
    return rfc3339(value) if isinstance(value, datetime) else value
