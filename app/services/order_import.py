"""Importing orders from NDJSON: bodies of `POST /orders`, and exported documents, which keep their state.

The schema of an exported document comes last.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson
from marshmallow import fields, validate

from app.db.engine import DATABASE_ERRORS, is_unavailable, read_timestamp, rfc3339
from app.errors import (
    InternalError,
    InvalidRequest,
    MalformedJSON,
    OrderTooLarge,
    RequestInFlight,
    ServiceError,
    ServiceUnavailable,
)
from app.models.lifecycle import (
    ACTIONS,
    DELIVERY_EVENTS,
    DELIVERY_EVENTS_MAX,
    FULFILLMENT_STATUSES,
    RETURN_RECORD_STATUSES,
    RETURN_STATUSES,
    STATUSES,
)
from app.models.money import PAYMENT_STATUSES, PAYMENT_TYPES, PAYMENTS_MAX, InvalidPrices
from app.models.order import CONTENT, RECORDS, line_columns
from app.models.order_aggregate import CLOCK_SKEW, HOLDS_MAX, VERSIONS_MAX, parse_order, render_order
from app.models.order_id import NUMBER_PATTERN, first_order_id, hash_reference
from app.models.principal import PRINCIPAL_MAX, Principal
from app.schemas.base import (
    BoundedInteger,
    BoundedList,
    Choice,
    RFC3339DateTime,
    StrictSchema,
    Text,
    body_errors,
    load_body,
    parse_json,
)
from app.schemas.order import (
    ADJUSTMENTS_MAX,
    CANCELLATION_REASONS,
    HOLD_KINDS,
    ITEMS_MAX,
    NOTE_MAX,
    PRICE_MAX,
    QUANTITY_MAX,
    AdjustmentInSchema,
    DistinctLinesSchema,
    Handle,
    ItemInSchema,
    LineQuantityInSchema,
    OrderInSchema,
    TrackingInSchema,
    UpdatedOrderSchema,
)
from app.services.document_checks import ID_TIME_LENGTH, inconsistent_members
from app.services.order_actions import DOCUMENT_MAX
from app.services.order_service import CreateRequest, content_columns, create_orders, item_columns, order_fingerprint
from app.services.order_storage import NewOrder, find_stored_ids, restore_orders

_EXPECTED_MAX = 500  # characters of a value in an error detail


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
            order = restore_order(load_body(_EXPORTED_ORDER, data), document=data, principal=self.principal.id)
            restored.append((line, order))
            return
        body = load_body(_NEW_ORDER, data)
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
        stored, errors = _store_restored(list(orders.values()))
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


def _store_restored(orders: Sequence[NewOrder]) -> tuple[set[str], dict[str, str]]:
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
        one_stored, one_error = _store_restored([order])
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


class _CompleteSchema(StrictSchema):
    """A schema that requires all members: a document has each of them, even if it is null."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = True


_IS_ORDER_NUMBER = validate.Regexp(NUMBER_PATTERN, error="This must be an order number, such as 261122-7QK4MZ8D.")
_IS_NOT_EMPTY = validate.Length(min=1, error="This must have a member, or be null.")


def _record_number() -> BoundedInteger:
    return BoundedInteger(1, 2**31 - 1, required=True)


def _record_lines() -> fields.Field[Any]:
    return BoundedList(fields.Nested(LineQuantityInSchema), min_length=1, max_length=ITEMS_MAX, required=True)


def _record_text() -> Text:
    return Text(NOTE_MAX, min_length=0, multiline=True, required=True, allow_none=True)


# The members of records are declared in the order of the document.


class ExportedItemSchema(_CompleteSchema, ItemInSchema):
    """A line with its units; the import computes the prices again."""

    line = BoundedInteger(1, ITEMS_MAX, required=True)
    subtotal = fields.Raw(allow_none=True)
    discount = fields.Raw()
    total = fields.Raw(allow_none=True)
    cancelled = BoundedInteger(0, QUANTITY_MAX, required=True)
    fulfilled = BoundedInteger(0, QUANTITY_MAX, required=True)
    returned = BoundedInteger(0, QUANTITY_MAX, required=True)


class ExportedAdjustmentSchema(_CompleteSchema, AdjustmentInSchema):
    """An adjustment of the order."""


class ExportedHoldSchema(StrictSchema):
    """A hold of the order."""

    handle = Handle()
    kind = Choice(HOLD_KINDS, required=True)
    reason = Text(200, required=True, allow_none=True)
    until = RFC3339DateTime(required=True, allow_none=True)
    placed_by = Text(PRINCIPAL_MAX, required=True)
    placed_at = RFC3339DateTime(required=True)


class ExportedPaymentSchema(StrictSchema):
    """A payment of the order."""

    type = Choice(PAYMENT_TYPES, required=True)
    amount = BoundedInteger(1, PRICE_MAX, required=True)
    waived = BoundedInteger(0, PRICE_MAX, required=True)
    reference = Text(128, required=True)
    method = Text(64, required=True, allow_none=True)
    occurred_at = RFC3339DateTime(required=True)
    note = _record_text()
    created_at = RFC3339DateTime(required=True)


class ExportedDeliveryEventSchema(StrictSchema):
    """What happened to a fulfillment."""

    type = Choice(DELIVERY_EVENTS, required=True)
    occurred_at = RFC3339DateTime(required=True)
    description = Text(500, required=True, allow_none=True)


class ExportedFulfillmentSchema(DistinctLinesSchema):
    """A fulfillment of the order."""

    number = _record_number()
    items = _record_lines()
    status = Choice(DELIVERY_EVENTS, required=True)
    tracking = fields.Nested(TrackingInSchema, required=True, allow_none=True, validate=_IS_NOT_EMPTY)
    events = BoundedList(fields.Nested(ExportedDeliveryEventSchema), max_length=DELIVERY_EVENTS_MAX, required=True)
    created_at = RFC3339DateTime(required=True)


class ExportedReturnSchema(DistinctLinesSchema):
    """A return of the order."""

    number = _record_number()
    items = _record_lines()
    status = Choice(RETURN_RECORD_STATUSES, required=True)
    reason = _record_text()
    created_at = RFC3339DateTime(required=True)


class ExportedCancellationSchema(DistinctLinesSchema):
    """A cancellation of units of the order."""

    number = _record_number()
    items = _record_lines()
    reason = Choice(CANCELLATION_REASONS, required=True)
    note = _record_text()
    created_at = RFC3339DateTime(required=True)
    reopened_at = RFC3339DateTime(required=True, allow_none=True)


class ExportedReopeningSchema(StrictSchema):
    """Why and when the order was reopened, and its status before."""

    from_status = Choice(ACTIONS["reopen"].from_statuses, required=True)
    reason = Text(NOTE_MAX, multiline=True, required=True, allow_none=True)
    at = RFC3339DateTime(required=True)


class ExportedOrderSchema(_CompleteSchema, UpdatedOrderSchema):
    """A complete order document. The import recomputes the derived members; they must equal those of the document.

    The members of CONTENT and RECORDS may be absent: an earlier release has exported an order without those added
    since.
    """

    items = BoundedList(fields.Nested(ExportedItemSchema), min_length=1, max_length=ITEMS_MAX, required=True)
    adjustments = BoundedList(fields.Nested(ExportedAdjustmentSchema), max_length=ADJUSTMENTS_MAX, required=True)
    id = fields.UUID(required=True)
    number = fields.String(required=True, validate=_IS_ORDER_NUMBER)
    status = Choice(STATUSES, required=True)
    fulfillment_status = Choice(FULFILLMENT_STATUSES, required=True)
    payment_status = Choice(PAYMENT_STATUSES, required=True)
    return_status = Choice(RETURN_STATUSES, required=True)
    holds = BoundedList(fields.Nested(ExportedHoldSchema), max_length=HOLDS_MAX, required=True)
    payments = BoundedList(fields.Nested(ExportedPaymentSchema), max_length=PAYMENTS_MAX, required=True)
    fulfillments = fields.List(fields.Nested(ExportedFulfillmentSchema), required=True)
    returns = fields.List(fields.Nested(ExportedReturnSchema), required=True)
    cancellations = fields.List(fields.Nested(ExportedCancellationSchema), required=True)
    reopening = fields.Nested(ExportedReopeningSchema, required=True, allow_none=True)
    late = fields.Boolean(required=True)
    # Actions that end an order are allowed beyond VERSIONS_MAX.
    version = BoundedInteger(1, 2 * VERSIONS_MAX, required=True)
    created_at = RFC3339DateTime(required=True)
    updated_at = RFC3339DateTime(required=True)
    totals = fields.Raw(allow_none=True)
    allowed_actions = fields.Raw()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        field_obj.required = field_name not in CONTENT | RECORDS


_NEW_ORDER, _EXPORTED_ORDER = OrderInSchema(), ExportedOrderSchema()
