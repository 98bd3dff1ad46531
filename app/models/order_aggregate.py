"""The order as a Python object, its transitions and their guards; then its document, and what a customer sees of it.

A document is rendered once for each version and stored with its event. Every reader receives the stored text; only a
customer's is rendered again, without what is internal to the shop, if there is any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import orjson

from app.db.engine import read_timestamp, rfc3339
from app.errors import (
    AmountExceeded,
    DuplicatePayment,
    FulfillmentNotFound,
    IllegalAction,
    InvalidRequest,
    ReturnNotFound,
    TooManyVersions,
)
from app.models.lifecycle import (
    ACTIONS,
    ACTIVE_FULFILLMENTS,
    CONDITIONS,
    DELIVERED,
    DELIVERY_EVENTS_MAX,
    EXPECTED,
    EXPECTED_RETURNS,
    FULFILLMENT_CANCELLED,
    LATE,
    NOT_ERASED,
    ON_HOLD,
    OPEN,
    OPEN_UNITS,
    PARTIALLY_CANCELLED,
    PRICES,
    RECEIVED,
    RETURN_EXPECTED,
    SHIPPED,
    UNITS_TO_RETURN,
    active_fulfillments,
    allowed_actions,
    count_units,
    delivery_status,
    fulfillment_status,
    return_status,
    with_status,
)
from app.models.money import (
    PAYMENTS_MAX,
    REVERSALS,
    InvalidPrices,
    exceeded_limit,
    order_totals,
    payment_status,
    price_lines,
    priced_lines,
    sum_payments,
    waived_amount,
)
from app.models.order import (
    CONTENT,
    CONTENT_TIMES,
    CONTENT_WHILE_PENDING,
    PERSONAL_COLUMNS,
    RECORDS,
    Line,
    Order,
    Units,
    open_units,
    require_available,
    returnable_units,
    scrub,
)
from app.models.order_id import ALIAS_PREFIX, hash_reference, is_alias
from app.models.principal import Principal

VERSIONS_MAX = 10_000  # of one order: bounds the time that its erasure and its history take
HOLDS_MAX = 20
CLOCK_SKEW = timedelta(days=1)  # how far in the future a reported time may be: clocks and time zones of others differ
# Allowed beyond VERSIONS_MAX, so that every order can be ended; each is possible only a few times more.
_FINAL_ACTIONS = {"cancel", "complete", "release"}

_COLUMNS = tuple(name for name in Order.__table__.columns.keys() if name not in ("idempotency_key_hash", "fingerprint"))
_column_values = attrgetter(*_COLUMNS)


@dataclass
class OrderAggregate:
    """An order with its items and records, independent of the database.

    The attributes are the members of the order document, with times as aware datetimes in UTC, and the columns that the
    document leaves out. It is not a SQLAlchemy model: with instances of those, a change takes 45 % more instructions.

    Each method that changes the order makes one new version and returns the type of its event, or None if nothing
    changes. If the order does not allow the change, it raises IllegalAction or, at VERSIONS_MAX, TooManyVersions;
    InvalidPrices if the total would be negative, or if an order with payments would have no prices. After an error,
    discard the order.

    A change replaces lists and the objects in them, and never modifies them in place: the caller may still use the
    document that the order was parsed from.
    """

    principal: str
    external_ref_hash: str | None
    id: str
    number: str
    customer_id: str
    external_ref: str | None
    channel: str | None
    status: str
    fulfillment_status: str
    payment_status: str
    return_status: str
    currency: str | None
    items: list[Line]
    adjustments: list[dict[str, Any]]
    totals: dict[str, int] | None
    holds: list[dict[str, Any]]
    payments: list[dict[str, Any]]
    fulfillments: list[dict[str, Any]]
    returns: list[dict[str, Any]]
    cancellations: list[dict[str, Any]]
    reopening: dict[str, Any] | None
    ship_by: datetime | None
    deliver_by: datetime | None
    late: bool
    related_orders: list[dict[str, str]]
    tags: list[str]
    metadata: dict[str, str]
    shipping_address: dict[str, str] | None
    billing_address: dict[str, str] | None
    note: str | None
    version: int
    allowed_actions: Sequence[str]
    created_at: datetime
    updated_at: datetime

    def __post_init__(self) -> None:
        self._derive_allowed_actions()  # those of a stored document may be of an earlier release

    @property
    def total(self) -> int | None:
        """The total in minor units; None if the order has no prices."""
        return None if self.totals is None else self.totals["total"]

    @property
    def due_at(self) -> datetime | None:
        """When the worker changes the order next: a hold ends, or the order becomes late."""
        dates = [read_timestamp(hold["until"]) for hold in self.holds if hold["until"]]
        if self.ship_by is not None and self._may_become_late and not self.late and self.version < VERSIONS_MAX:
            dates.append(self.ship_by)
        return min(dates, default=None)

    @property
    def has_open_units(self) -> bool:
        """Whether units are neither cancelled nor fulfilled."""
        return any(map(open_units, self.items))

    def columns(self) -> dict[str, Any]:
        """The values of the columns of `orders` by name. The idempotency key's hash and the fingerprint are left out,
        since no change alters them."""
        return dict(zip(_COLUMNS, _column_values(self), strict=True))

    def derive(self) -> None:
        """Derive units, prices, totals, statuses, `late` and `allowed_actions` from items, records and dates.

        Raises InvalidPrices for a negative total, and for payments of an order without prices.
        """
        self._count_units()
        prices = price_lines(self.items, self.adjustments)
        payments = sum_payments(self.payments, self.cancellations)
        self.items = priced_lines(self.items, prices)
        self.totals = order_totals(prices, self.items, is_cancelled=self.status == "cancelled", payments=payments)
        if self.total is None and self.payments:
            raise InvalidPrices({"adjustments": ["The order has payments, so its prices cannot be removed."]})
        total = self.total or 0
        if total < 0:
            raise InvalidPrices(
                {"adjustments": [f"The adjustments must not make the order's total negative: it would be {total:,}."]}
            )
        fulfilled, returned = (sum([line[name] for line in self.items]) for name in ("fulfilled", "returned"))
        self.fulfillment_status = fulfillment_status(
            fulfilled=fulfilled, is_open=self.has_open_units, active=active_fulfillments(self.fulfillments)
        )
        self.return_status = return_status(fulfilled=fulfilled, returned=returned)
        self.payment_status = payment_status(payments, total=total)
        self.late = self.late and self._may_become_late
        self._derive_allowed_actions()

    def _derive_allowed_actions(self) -> None:
        expected = count_units(with_status(self.returns, EXPECTED))
        conditions = {
            ON_HOLD: self.holds,
            OPEN_UNITS: self.has_open_units,
            UNITS_TO_RETURN: self.fulfillments
            and any(returnable_units(line, expected=expected) for line in self.items),
            EXPECTED_RETURNS: expected,
            ACTIVE_FULFILLMENTS: active_fulfillments(self.fulfillments),
            PRICES: self.totals is not None,
            NOT_ERASED: not is_alias(self.customer_id),
        }
        met = frozenset([name for name, is_met in conditions.items() if is_met])
        self.allowed_actions = allowed_actions(self.status, met)

    def confirm(self, *, at: datetime) -> str:
        """Confirm a pending order."""
        self._require_allowed("confirm")
        return self._record("confirm", at)

    def cancel(
        self,
        *,
        reason: str,
        note: str | None,
        items: Units | None = None,
        adjustments: list[dict[str, Any]] | None = None,
        at: datetime,
    ) -> str:
        """Cancel open units, all of them by default. `adjustments` replace those of the order.

        An order without open units ends: as completed if units have been fulfilled, else as cancelled. That releases
        its holds. Also raises QuantityExceeded, and InvalidRequest for unknown lines.
        """
        self._require_allowed("cancel")
        self._refuse_personal_data(
            note=note, label=[adjustment["label"] for adjustment in adjustments or () if adjustment["label"]]
        )
        units = items or [
            {"line": line["line"], "quantity": count} for line in self.items if (count := open_units(line))
        ]
        require_available(units, self.items, available=open_units)
        if self.version >= VERSIONS_MAX and items:
            raise self._too_many_versions()
        record = {"number": len(self.cancellations) + 1, "items": units, "reason": reason, "note": note}
        self.cancellations = [*self.cancellations, record | {"created_at": rfc3339(at), "reopened_at": None}]
        if adjustments is not None:
            if adjustments and self.currency is None:
                raise _invalid_member("adjustments", "The order has no currency. Update it with a currency first.")
            self.adjustments = adjustments
        self._end_without_open_units()
        return self._record("cancel", at, event=None if self.status == "cancelled" else PARTIALLY_CANCELLED)

    def complete(self, *, at: datetime) -> str:
        """Complete a confirmed order; units that are still open are not going to be fulfilled."""
        self._require_allowed("complete")
        return self._record("complete", at)

    def reopen(self, *, reason: str, at: datetime) -> str:
        """Reopen an order that has ended: a completed one as confirmed; a cancelled one as pending, with its cancelled
        units open again."""
        self._require_allowed("reopen")
        self.reopening = {"from_status": self.status, "reason": reason, "at": rfc3339(at)}
        if self.status == "cancelled":
            self.cancellations = [
                {**record, "reopened_at": record["reopened_at"] or rfc3339(at)} for record in self.cancellations
            ]
        self.status = "pending" if self.status == "cancelled" else "confirmed"
        return self._record("reopen", at)

    def place_hold(
        self, handle: str, *, kind: str, reason: str | None, until: datetime | None, placed_by: str, at: datetime
    ) -> str | None:
        """Place a hold on an open order, or replace the one with the same handle. The same hold again changes nothing.

        Also raises InvalidRequest if `until` has passed.
        """
        content = {"kind": kind, "reason": reason, "until": until and rfc3339(until)}
        current = next((hold for hold in self.holds if hold["handle"] == handle), None)
        if current is not None and content.items() <= current.items():
            return None
        self._require_allowed("hold")
        self._refuse_personal_data(reason=reason)
        if until is not None and until <= at:
            raise _invalid_member("until", "This must be in the future.")
        if current is None and len(self.holds) == HOLDS_MAX:
            raise self._illegal(f"The order has {HOLDS_MAX} holds, the maximum. Release one of them first.")
        new_hold = {"handle": handle, **content, "placed_by": placed_by, "placed_at": rfc3339(at)}
        self.holds = [new_hold if hold is current else hold for hold in self.holds]
        if current is None:
            self.holds = [*self.holds, new_hold]
        return self._record("hold", at)

    def release_hold(self, handle: str, *, at: datetime) -> str | None:
        """Release one hold. Without a hold of this handle nothing changes."""
        remaining = [hold for hold in self.holds if hold["handle"] != handle]
        if len(remaining) == len(self.holds):
            return None
        self._require_allowed("release")
        self.holds = remaining
        return self._record("release", at)

    def apply_due_change(self, *, at: datetime) -> str | None:
        """Make one change that is due by now: release a hold that has ended, or mark the order as late."""
        for hold in self.holds:
            if hold["until"] and read_timestamp(hold["until"]) <= at:
                return self.release_hold(hold["handle"], at=at)
        if self.due_at is None or self.due_at > at:
            return None
        self.late = True
        return self._record(None, at, event=LATE)

    def record_payment(
        self,
        *,
        type: str,
        amount: int,
        reference: str,
        method: str | None,
        occurred_at: datetime | None,
        note: str | None,
        at: datetime,
    ) -> str | None:
        """Record a payment; `amount` is in minor units. An entry with the same type, reference and amount changes
        nothing. A reversal has the reference and the amount of the payment that it reverses.

        Also raises DuplicatePayment for another amount, AmountExceeded, and InvalidRequest for a time in the future and
        for a reversal without its payment.
        """
        for payment in self.payments:
            if (payment["type"], payment["reference"]) == (type, reference):
                if payment["amount"] == amount:
                    return None
                name = type.replace("_", " ")
                raise DuplicatePayment(f"This {name} is already recorded with the amount {payment['amount']:,}.")
        self._require_allowed("pay")
        self._refuse_personal_data(note=note)
        if len(self.payments) >= PAYMENTS_MAX:
            raise self._illegal(f"The order has {PAYMENTS_MAX:,} payments, the maximum.")
        sums = sum_payments(self.payments, self.cancellations)
        waived = waived_amount(type, amount, sums, total=self.total or 0)
        record = {
            "type": type,
            "amount": amount,
            "waived": waived,
            "reference": reference,
            "method": method,
            "occurred_at": _reported_time(occurred_at, at),
            "note": note,
            "created_at": rfc3339(at),
        }
        if type in REVERSALS:
            self._require_payment(REVERSALS[type], reference, amount)
        self.payments = [*self.payments, record]
        if exceeded := exceeded_limit(sum_payments(self.payments)):
            raise AmountExceeded(exceeded)
        return self._record("pay", at)

    def fulfill(self, *, items: Units, tracking: dict[str, str] | None, at: datetime) -> str:
        """Record a fulfillment of open units. The last open unit completes the order. A tracking without members is
        stored as None.

        Also raises QuantityExceeded, and InvalidRequest for unknown lines.
        """
        self._require_allowed("fulfill")
        self._refuse_personal_data(tracking=tracking)
        require_available(items, self.items, available=open_units)
        record = {"number": len(self.fulfillments) + 1, "items": items, "status": SHIPPED, "tracking": tracking or None}
        self.fulfillments = [*self.fulfillments, record | {"events": [], "created_at": rfc3339(at)}]
        self._end_without_open_units()
        return self._record("fulfill", at)

    def update_tracking(self, number: int, *, patch: dict[str, str | None] | None, at: datetime) -> str | None:
        """Apply a JSON merge patch to the tracking of a fulfillment; a tracking without members is stored as None.

        Raises FulfillmentNotFound.
        """
        fulfillment = self._get_fulfillment(number)
        tracking = merge_patch(fulfillment["tracking"], patch) or None
        if fulfillment["tracking"] == tracking:
            return None
        self._require_allowed("track")
        self._refuse_personal_data(tracking=tracking)
        self._replace_fulfillment(fulfillment | {"tracking": tracking})
        return self._record("track", at)

    def record_delivery_event(
        self, number: int, *, type: str, occurred_at: datetime | None, description: str | None, at: datetime
    ) -> str:
        """Record a delivery event of a fulfillment, now or at `occurred_at`. `cancelled` opens its units again, and an
        order that its last fulfillment had completed is confirmed again.

        Raises FulfillmentNotFound, and InvalidRequest for a time in the future.
        """
        fulfillment = self._get_fulfillment(number)
        self._require_allowed("track")
        self._refuse_personal_data(description=description)
        if fulfillment["status"] == FULFILLMENT_CANCELLED:
            raise self._illegal(f"Fulfillment {number} was cancelled.")
        if len(fulfillment["events"]) >= DELIVERY_EVENTS_MAX:
            raise self._illegal(f"Fulfillment {number} has {DELIVERY_EVENTS_MAX} events, the maximum.")
        if type == FULFILLMENT_CANCELLED:
            self._require_cancellable(fulfillment)
        event = {"type": type, "occurred_at": _reported_time(occurred_at, at), "description": description}
        events = [*fulfillment["events"], event]
        was_completed = self.status == "completed" and not self.has_open_units
        self._replace_fulfillment(fulfillment | {"status": delivery_status(events), "events": events})
        self._count_units()
        if was_completed and self.has_open_units:
            self.status = "confirmed"
        return self._record("track", at)

    def return_items(self, *, items: Units, status: str, reason: str | None, at: datetime) -> str:
        """Record a return: received, or expected and counted once it is received.

        Also raises QuantityExceeded, and InvalidRequest for unknown lines.
        """
        self._require_allowed("return")
        self._refuse_personal_data(reason=reason)
        expected = count_units(with_status(self.returns, EXPECTED))
        require_available(items, self.items, available=partial(returnable_units, expected=expected))
        record = {"number": len(self.returns) + 1, "items": items, "status": status, "reason": reason}
        self.returns = [*self.returns, record | {"created_at": rfc3339(at)}]
        return self._record("return", at, event=RETURN_EXPECTED if status == EXPECTED else None)

    def settle_return(self, number: int, *, status: str, at: datetime) -> str | None:
        """Receive or reject an expected return. Raises ReturnNotFound. Repeating it changes nothing."""
        if not 1 <= number <= len(self.returns):
            raise ReturnNotFound(f"Return {number} was not found.")
        record = self.returns[number - 1]
        if record["status"] == status:
            return None
        if record["status"] != EXPECTED:
            raise self._illegal(f"Return {number} is already {record['status']}.")
        self._require_allowed("receive" if status == RECEIVED else "reject")
        self.returns = [{**entry, "status": status} if entry is record else entry for entry in self.returns]
        return self._record("receive" if status == RECEIVED else "reject", at)

    def update(self, content: dict[str, Any], *, at: datetime) -> str:
        """Change the members of CONTENT, given by column name, and "items", given as the columns of all lines.

        Those of CONTENT_WHILE_PENDING can change only while the order is pending, the currency only before a payment.
        """
        if self.status != "pending" and not content.keys().isdisjoint(CONTENT_WHILE_PENDING):
            raise self._illegal("Items, adjustments and currency can be changed only while the order is pending.")
        if "currency" in content and self.payments:
            raise self._illegal("The currency can be changed only while no payment is recorded.")
        if "items" in content and any(line["cancelled"] for line in self.items):
            raise self._illegal("Items can be changed only while none of their units is cancelled.")
        if is_alias(self.customer_id):
            scrubbed = scrub(self.columns() | content, alias=self.customer_id)
            self._refuse_personal_data(**{name: content[name] for name in content if scrubbed[name] != content[name]})
        self._require_allowed("update")
        for name, value in content.items():
            setattr(self, name, value)
        if "external_ref" in content:
            self.external_ref_hash = hash_reference(self.external_ref, principal=self.principal)
        if "ship_by" in content:
            self.late = False  # the new date decides
        return self._record("update", at)

    def erase(self, *, alias: str, at: datetime) -> None:
        """Erase the personal data of an order that has ended. `alias` replaces the customer's id."""
        scrubbed = scrub(self.columns(), alias=alias)
        for name in PERSONAL_COLUMNS:
            setattr(self, name, scrubbed[name])
        self.version += 1
        self.updated_at = at
        self._derive_allowed_actions()

    @property
    def _may_become_late(self) -> bool:
        return self.ship_by is not None and self.status in OPEN and self.has_open_units

    def _count_units(self) -> None:
        """Count the cancelled, fulfilled and returned units of the lines from the records."""
        cancelled = count_units([record for record in self.cancellations if record["reopened_at"] is None])
        fulfilled = count_units(active_fulfillments(self.fulfillments))
        returned = count_units(with_status(self.returns, RECEIVED))
        self.items = [
            line
            | {
                "cancelled": cancelled.get(line["line"], 0),
                "fulfilled": fulfilled.get(line["line"], 0),
                "returned": returned.get(line["line"], 0),
            }
            for line in self.items
        ]

    def _end_without_open_units(self) -> None:
        self._count_units()
        if not self.has_open_units:
            self.status = "completed" if any(line["fulfilled"] for line in self.items) else "cancelled"
            self.holds = []

    def _get_fulfillment(self, number: int) -> dict[str, Any]:
        if not 1 <= number <= len(self.fulfillments):
            raise FulfillmentNotFound(f"Fulfillment {number} was not found.")
        return self.fulfillments[number - 1]

    def _replace_fulfillment(self, fulfillment: dict[str, Any]) -> None:
        number = fulfillment["number"]
        self.fulfillments = [fulfillment if entry["number"] == number else entry for entry in self.fulfillments]

    def _require_cancellable(self, fulfillment: Mapping[str, Any]) -> None:
        number = fulfillment["number"]
        if fulfillment["status"] == DELIVERED:
            raise self._illegal(f"Fulfillment {number} was delivered. Record a return instead.")
        if is_alias(self.customer_id):  # an open order needs the personal data
            raise self._illegal("The customer's personal data was erased; the order cannot be opened again.")
        units = count_units([fulfillment])
        expected = count_units(with_status(self.returns, EXPECTED))
        if any(returnable_units(line, expected=expected) < units.get(line["line"], 0) for line in self.items):
            raise self._illegal(f"Units of fulfillment {number} have been returned, or are expected back.")

    def _require_payment(self, type: str, reference: str, amount: int) -> None:
        """Raise InvalidRequest unless the order has this payment, which is to be reversed."""
        amounts = [one["amount"] for one in self.payments if (one["type"], one["reference"]) == (type, reference)]
        if not amounts:
            raise _invalid_member("reference", f"The order has no {type} with this reference.")
        if amounts != [amount]:
            raise _invalid_member("amount", f"This must be {amounts[0]:,}, the amount of the {type}.")

    def _refuse_personal_data(self, **members: Any) -> None:
        """Raise IllegalAction if the order has been erased and one of these members has a value, since no later erasure
        would find it."""
        names = sorted(name for name, value in members.items() if value not in (None, {}, []))
        if names and is_alias(self.customer_id):
            raise self._illegal(
                f"The customer's personal data was erased; the order no longer accepts {', '.join(names)}."
            )

    def _require_allowed(self, name: str) -> None:
        if name not in self.allowed_actions:
            raise self._illegal(f"The action {name} is not allowed: {self._unmet_condition(name)}.")
        if self.version >= VERSIONS_MAX and name not in _FINAL_ACTIONS:
            raise self._too_many_versions()

    def _too_many_versions(self) -> TooManyVersions:
        return TooManyVersions(f"The order has {self.version:,} versions; the maximum is {VERSIONS_MAX:,}.")

    def _unmet_condition(self, name: str) -> str:
        action = ACTIONS[name]
        if self.status not in action.from_statuses:
            return f"the order is {self.status}"
        if action.blocked_by_hold and self.holds:
            return f"the order is {self.status} and on hold ({', '.join(hold['handle'] for hold in self.holds)})"
        assert action.condition is not None
        return CONDITIONS[action.condition]

    def _record(self, action: str | None, at: datetime, *, event: str | None = None) -> str:
        """Make the next version: set the status that the action leads to, and derive the rest. Returns the event type,
        by default that of the action."""
        if action is not None:
            self.status = ACTIONS[action].to_status or self.status
            event = event or ACTIONS[action].event
        assert event is not None
        self.version += 1
        self.updated_at = at
        self.derive()
        return event

    def _illegal(self, detail: str) -> IllegalAction:
        return IllegalAction(detail, order_status=self.status, allowed_actions=self.allowed_actions)


def _reported_time(occurred_at: datetime | None, at: datetime) -> str:
    """The time that a caller reports, or now, as RFC 3339 text."""
    if occurred_at is not None and occurred_at > at + CLOCK_SKEW:
        raise _invalid_member("occurred_at", "This must not be in the future.")
    return rfc3339(occurred_at or at)


def _invalid_member(member: str, detail: str) -> InvalidRequest:
    errors = [{"pointer": f"#/{member}", "detail": detail}]
    return InvalidRequest("The body is not valid. Correct what `errors` lists.", errors=errors)


def merge_patch(target: Any, patch: Any) -> Any:
    """The target with a JSON merge patch applied (RFC 7396 §2): null removes, objects merge, all else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


_DOCUMENT_MEMBERS = tuple(
    field.name for field in fields(OrderAggregate) if field.name not in ("principal", "external_ref_hash")
)
_document_members = itemgetter(*_DOCUMENT_MEMBERS)
_TIME_MEMBERS = ("created_at", "updated_at", *CONTENT_TIMES)
_DOCUMENT_HEAD = 100  # characters of a document that contain its id, number and customer_id
NOT_A_DOCUMENT = (KeyError, TypeError, AttributeError, ValueError)  # raised by reading what is no order document


@dataclass(slots=True)
class StoredOrder:
    """A version of an order, with its document as it is stored."""

    id: str
    version: int
    document: str
    replayed: bool = False
    unchanged: bool = False  # the request changed nothing
    partial: bool = False  # a customer's view, from which something is left out


def render_order(order: Mapping[str, Any]) -> str:
    """Render the document of an order from its members by name; others are left out."""
    document = dict(zip(_DOCUMENT_MEMBERS, _document_members(order), strict=True))
    for name in _TIME_MEMBERS:
        if document[name] is not None:
            document[name] = rfc3339(document[name])
    return orjson.dumps(document).decode()


def load_document(text: str) -> dict[str, Any]:
    """The members of a stored document, with those of CONTENT and RECORDS that a later release has added."""
    document: dict[str, Any] = orjson.loads(text)
    if len(document) == len(_DOCUMENT_MEMBERS):
        return document
    return document | {name: absent for name, absent in (CONTENT | RECORDS).items() if name not in document}


def parse_order(document: Mapping[str, Any], *, principal: str, external_ref_hash: str | None) -> OrderAggregate:
    """The order that a document was rendered from, and the two columns that it does not hold."""
    members = dict(document)
    for name in _TIME_MEMBERS:
        if members[name] is not None:
            members[name] = read_timestamp(members[name])
    # By position: Python compares each name of 34 with each of the others, in 120,000 instructions.
    return OrderAggregate(principal, external_ref_hash, *_document_members(members))


def is_erased(document: str) -> bool:
    """Whether the personal data of a stored order document was erased. The document is not parsed."""
    return f'"customer_id":"{ALIAS_PREFIX}' in document[:_DOCUMENT_HEAD]


_STAFF, _SERVICE = "staff", "service"  # the actors that a customer sees in place of ids
# Texts in documents without internal members. They cannot occur inside a string, where quotes are escaped.
_NOTHING_INTERNAL = ('"holds":[],"payments":[],', '"reopening":null,')


def visible_order(order: StoredOrder, principal: Principal) -> StoredOrder:
    """The order as the principal may see it."""
    document = visible_document(order.document, principal)
    return order if document == order.document else replace(order, document=document, partial=True)


def visible_document(document: str, principal: Principal) -> str:
    """The order document as the principal may see it.

    A customer does not see the reasons of holds and reopenings, who placed a hold, or the references and notes of
    payments.
    """
    if principal.customer_id is None or all(text in document for text in _NOTHING_INTERNAL):
        return document
    order = load_document(document)
    for hold in order["holds"]:
        hold.pop("reason", None)
        hold["placed_by"] = visible_actor(hold["placed_by"], principal)
    for payment in order["payments"]:
        del payment["reference"], payment["note"]
    if order["reopening"]:
        del order["reopening"]["reason"]
    return orjson.dumps(order).decode()


def visible_actor(actor: str, principal: Principal) -> str:
    """The actor of an event as the principal may see it: a customer sees only themselves by id."""
    if principal.customer_id is None or actor == principal.id:
        return actor
    return _STAFF if actor.startswith("token:") else _SERVICE
