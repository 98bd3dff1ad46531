"""The order service in plain Python: a second implementation of the rules of an order, without a database.

Nothing of the service is used here, so that the two can be compared (`test_order_model.py`). Ids and numbers are left
out; an order is identified by its position in the list. Times are included: the caller sets the clock, `now`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Any

import orjson

Document = dict[str, Any]
Units = list[dict[str, int]]

ONLY_WHILE_PENDING = ("items", "adjustments", "currency")
REASONS = {"customer", "inventory", "fraud", "declined", "staff", "expired", "other"}
KINDS = {"fraud", "payment", "address", "inventory", "review", "other"}
DELIVERY_EVENTS = {
    "shipped", "in_transit", "out_for_delivery", "ready_for_pickup", "delivered", "failed_attempt",
    "returned_to_sender", "cancelled",
}  # fmt: skip
HOLDS = 20  # at most
REVERSED = {"capture_reversal": "capture", "refund_reversal": "refund", "chargeback_reversal": "chargeback"}
FUTURE = timedelta(days=1)  # of a reported time, at most


class Refusal(Exception):
    """A problem, by its status and type, and the members that it must have.

    `pointers` are those of its errors, relative to the order or the change.
    """

    def __init__(self, status: int, slug: str, **members: Any) -> None:
        super().__init__(status, slug, members)
        self.status, self.slug, self.members = status, slug, members


@dataclass(frozen=True)
class Reply:
    """An order at a version. `unchanged`: the request changed nothing."""

    order: int
    version: int
    replayed: bool = False
    unchanged: bool = False


@dataclass
class Order:
    """The order's document now and after each change, its events, and the idempotency keys of its changes."""

    now: Document
    versions: list[Document] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)  # type, actor, time
    keys: dict[tuple[str, Any, str], tuple[Any, Reply]] = field(default_factory=dict)

    def record(self, event: str, document: Document, *, actor: str, at: datetime) -> None:
        self.now = derived(document) | {"version": len(self.versions) + 1, "updated_at": text_of(at)}
        self.versions.append(copy_of(self.now))
        self.events.append((f"order.{event}", actor, text_of(at)))


class ReferenceService:
    """All orders of one principal."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.orders: list[Order] = []
        self.bodies: list[Document] = []  # the body of each order
        self.keys: dict[str, int] = {}
        self.ref_keys: dict[str, int] = {}  # references that were used as the key of an entry

    def create(self, body: Document, *, key: str | None, ref_is_key: bool = False) -> Reply:
        """Create an order. In a batch, the reference of an entry without a key is its key."""
        content = checked_content(body)
        if key in self.keys:
            order = self.keys[key]
            if self.bodies[order] != content:
                raise Refusal(422, "idempotency-key-reused")
            return Reply(order, 1, replayed=True)
        reference = content["external_ref"]
        holder = self.order_with_reference(reference)
        if ref_is_key and key is None and reference is not None:
            created = self.ref_keys.get(reference)
            for order in [found for found in (created, holder) if found is not None]:
                if self.bodies[order] == content:
                    return Reply(order, 1, replayed=True)
            if holder is None and created is not None:
                raise Refusal(409, "duplicate-external-ref", order=created)
        if holder is not None:
            raise Refusal(409, "duplicate-external-ref", order=holder)
        self.orders.append(Order({}))
        if ref_is_key and key is None and reference is not None:
            self.ref_keys[reference] = len(self.orders) - 1
        document = new_document(content) | {"created_at": text_of(self.now)}
        self.orders[-1].record("created", document, actor="anonymous", at=self.now)
        self.bodies.append(content)
        if key is not None:
            self.keys[key] = len(self.orders) - 1
        return Reply(len(self.orders) - 1, 1)

    def act(
        self, number: int, action: str, target: Any, body: Any, *, key: str | None, if_match: set[int] | None
    ) -> Reply:
        """`target` is the hold's handle or the number of the fulfillment or return; `if_match` holds the versions that
        the header names, None for any."""
        body = checked_body(action, body)
        order = self.orders[number]
        if key is not None and (action, target, key) in order.keys:
            first_body, reply = order.keys[action, target, key]
            if first_body != body:
                raise Refusal(422, "idempotency-key-reused")
            return Reply(number, reply.version, replayed=True, unchanged=reply.unchanged)
        if if_match is not None and order.now["version"] not in if_match:
            raise Refusal(412, "version-mismatch", current_version=order.now["version"])
        changed = self.change(number, action, target, body)
        reply = Reply(number, order.now["version"], unchanged=not changed)
        if key is not None:  # even if nothing changed
            order.keys[action, target, key] = copy_of(body), reply
        return reply

    def change(self, number: int, action: str, target: Any, body: Any, *, actor: str = "anonymous") -> bool:
        order = self.orders[number]
        document = copy_of(order.now)
        arguments = [argument for argument in (target, body) if argument is not None]
        event = CHANGES[action](document, *arguments, at=self.now)
        if event is None:
            return False
        holder = self.order_with_reference(document["external_ref"])
        if holder not in (None, number):
            raise Refusal(409, "duplicate-external-ref", order=holder)
        order.record(event, document, actor=actor, at=self.now)
        return True

    def expire(self, age: timedelta) -> int:
        """Cancel the pending orders that are older, except those on hold, those paid for and those reopened."""
        expired = [
            i
            for i, order in enumerate(self.orders)
            if order.now["status"] == "pending"
            and not order.now["holds"]
            and order.now["reopening"] is None
            and order.now["payment_status"] == "unpaid"
            and moment(order.now["created_at"]) < self.now - age
        ]
        for number in expired:
            self.change(number, "cancel", None, {"reason": "expired"}, actor="system:expiry")
        return len(expired)

    def apply_due_changes(self) -> int:
        """Release the holds that have ended, and mark the orders that have become late."""
        return sum(1 for number in range(len(self.orders)) for _ in self.due_changes(number))

    def due_changes(self, number: int) -> Iterator[None]:
        for hold in self.orders[number].now["holds"]:
            if hold["until"] is not None and moment(hold["until"]) <= self.now:
                self.change(number, "release", hold["handle"], None, actor="system:schedule")
                yield
        order = self.orders[number].now
        if can_be_late(order) and not order["late"] and moment(order["ship_by"]) <= self.now:
            self.orders[number].record("late", order | {"late": True}, actor="system:schedule", at=self.now)
            yield

    def order_with_reference(self, external_ref: str | None) -> int | None:
        holders = [i for i, o in enumerate(self.orders) if external_ref and o.now["external_ref"] == external_ref]
        return holders[0] if holders else None

    def matching(self, **filters: str) -> set[int]:
        def fits(document: Document) -> bool:
            texts = {name: value for name, value in document.items() if isinstance(value, str)}
            items = {item["item_id"] for item in document["items"]}
            others = {name: value.split(",") for name, value in filters.items() if name != "item_id"}
            return filters.get("item_id") in {None, *items} and all(texts.get(name) in others[name] for name in others)

        return {i for i, order in enumerate(self.orders) if fits(order.now)}


def copy_of(document: Any) -> Any:
    return orjson.loads(orjson.dumps(document))  # a sixth of the time of copy.deepcopy


def text_of(time: datetime) -> str:
    """A time as in documents: UTC with microseconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def normal_time(text: str | None) -> str | None:
    return None if text is None else text_of(moment(text))


def open_units(item: Document) -> int:
    units: int = item["quantity"] - item["cancelled"] - item["fulfilled"]
    return units


def is_open(order: Document) -> bool:
    return order["status"] in ("pending", "confirmed")


def can_be_late(order: Document) -> bool:
    return order["ship_by"] is not None and is_open(order) and any(map(open_units, order["items"]))


def returnable(order: Document) -> dict[int, int]:
    """The units of each line that could still be returned."""
    left = {item["line"]: item["fulfilled"] - item["returned"] for item in order["items"]}
    for return_ in order["returns"]:
        for entry in return_["items"] if return_["status"] == "expected" else []:
            left[entry["line"]] -= entry["quantity"]
    return left


def allowed_actions(order: Document) -> list[str]:
    held, confirmed = order["holds"] != [], order["status"] == "confirmed"
    open_left = any(map(open_units, order["items"]))
    expected = any(return_["status"] == "expected" for return_ in order["returns"])
    allowed = {
        "update": True,
        "confirm": order["status"] == "pending" and not held,
        "cancel": is_open(order) and open_left,
        "complete": confirmed and not held,
        "hold": is_open(order),
        "release": is_open(order) and held,
        "fulfill": confirmed and not held and open_left,
        "track": any(fulfillment["status"] != "cancelled" for fulfillment in order["fulfillments"]),
        "return": order["status"] in ("confirmed", "completed") and any(returnable(order).values()),
        "receive": expected,
        "reject": expected,
        "pay": order["totals"] is not None,
        "reopen": not is_open(order),
    }
    return sorted(name for name in allowed if allowed[name])


def require(action: str, order: Document) -> None:
    if action not in allowed_actions(order):
        raise illegal(order)


def illegal(order: Document) -> Refusal:
    return Refusal(409, "illegal-action", order_status=order["status"], allowed_actions=allowed_actions(order))


def invalid(*pointers: str) -> Refusal:
    return Refusal(400, "invalid-request", pointers=pointers)


def reported(time: str | None, at: datetime) -> str:
    if time is not None and moment(time) > at + FUTURE:
        raise invalid("occurred_at")
    return time or text_of(at)


def confirm(order: Document, at: datetime) -> str:
    require("confirm", order)
    order["status"] = "confirmed"
    return "confirmed"


def complete(order: Document, at: datetime) -> str:
    require("complete", order)
    order["status"] = "completed"
    return "completed"


def cancel(order: Document, body: Document, at: datetime) -> str:
    require("cancel", order)
    left = {item["line"]: open_units(item) for item in order["items"]}
    units = body.get("items") or [{"line": line, "quantity": left[line]} for line in left if left[line]]
    require_units(units, left)
    record = {"number": len(order["cancellations"]) + 1, "items": units, "reason": body["reason"]}
    record |= {"note": body.get("note"), "created_at": text_of(at), "reopened_at": None}
    order["cancellations"].append(record)
    if "adjustments" in body:
        order["adjustments"] = [adjustment_of(adjustment) for adjustment in body["adjustments"]]
        if order["adjustments"] and order["currency"] is None:
            raise invalid("adjustments")
    end_without_open_units(order)
    return "cancelled" if order["status"] == "cancelled" else "partially_cancelled"


def end_without_open_units(order: Document) -> None:
    count_units(order)
    if not any(map(open_units, order["items"])):
        order["status"] = "completed" if any(item["fulfilled"] for item in order["items"]) else "cancelled"
        order["holds"] = []


def reopen(order: Document, body: Document, at: datetime) -> str:
    require("reopen", order)
    order["reopening"] = {"from_status": order["status"], "reason": body["reason"], "at": text_of(at)}
    if order["status"] == "completed":
        order["status"] = "confirmed"
    else:
        order["status"] = "pending"
        for cancellation in order["cancellations"]:
            cancellation["reopened_at"] = cancellation["reopened_at"] or text_of(at)
    return "reopened"


def hold(order: Document, handle: str, body: Document, at: datetime) -> str | None:
    terms = {"kind": body["kind"], "reason": body.get("reason"), "until": body.get("until")}
    handles = [hold["handle"] for hold in order["holds"]]
    same = order["holds"][handles.index(handle)] if handle in handles else {}
    if all(same.get(name, "none") == terms[name] for name in terms):
        return None
    require("hold", order)
    if terms["until"] is not None and moment(terms["until"]) <= at:
        raise invalid("until")
    new = {"handle": handle, **terms, "placed_by": "anonymous", "placed_at": text_of(at)}
    if handle in handles:
        order["holds"][handles.index(handle)] = new
    elif len(handles) == HOLDS:
        raise illegal(order)
    else:
        order["holds"].append(new)
    return "held"


def release(order: Document, handle: str, at: datetime) -> str | None:
    left = [hold for hold in order["holds"] if hold["handle"] != handle]
    if left == order["holds"]:
        return None
    order["holds"] = left
    return "released"


def pay(order: Document, body: Document, at: datetime) -> str | None:
    for payment in order["payments"]:
        if payment["type"] == body["type"] and payment["reference"] == body["reference"]:
            if payment["amount"] != body["amount"]:
                raise Refusal(409, "duplicate-payment")
            return None
    require("pay", order)
    if reversed_type := REVERSED.get(body["type"]):
        amounts = [
            payment["amount"] for payment in order["payments"] if is_payment(payment, reversed_type, body["reference"])
        ]
        if amounts != [body["amount"]]:
            raise Refusal(400, "invalid-request")
    entry = {name: body[name] for name in ("type", "amount", "reference")}
    entry |= {"method": body.get("method"), "note": body.get("note"), "created_at": text_of(at)}
    entry["occurred_at"] = reported(body.get("occurred_at"), at)
    before = totals(order) or {}
    order["payments"].append(entry | {"waived": 0})
    # A refund of a paid amount, except of an overpayment, is not due again.
    if before["due"] <= 0 and body["type"] in ("refund", "chargeback"):
        order["payments"][-1]["waived"] = max(0, (totals(order) or {})["due"])
    authorized, captured, refunded = sums_of(order["payments"])
    if refunded > captured or authorized < 0:
        raise Refusal(409, "amount-exceeded")
    return "payment_recorded"


def sums_of(payments: list[Document]) -> tuple[int, int, int]:
    """The amounts authorized and not voided, captured, and refunded."""

    def of(*types: str) -> int:
        return sum(payment["amount"] for payment in counting(payments) if payment["type"] in types)

    return of("authorization") - of("void"), of("capture"), of("refund", "chargeback")


def counting(payments: list[Document]) -> list[Document]:
    """The payments that were not reversed."""

    def is_reversed(payment: Document) -> bool:
        return any(
            is_payment(payment, REVERSED[reversal["type"]], reversal["reference"])
            for reversal in payments
            if reversal["type"] in REVERSED
        )

    return [payment for payment in payments if not is_reversed(payment)]


def is_payment(payment: Document, type: str, reference: str) -> bool:
    return bool((payment["type"], payment["reference"]) == (type, reference))


def fulfill(order: Document, body: Document, at: datetime) -> str:
    require("fulfill", order)
    require_units(body["items"], {item["line"]: open_units(item) for item in order["items"]})
    sent = {"number": len(order["fulfillments"]) + 1, "items": body["items"], "tracking": body.get("tracking") or None}
    order["fulfillments"].append(sent | {"status": "shipped", "events": [], "created_at": text_of(at)})
    end_without_open_units(order)
    return "fulfilled"


def fulfillment_of(order: Document, number: int) -> Document:
    if number > len(order["fulfillments"]):
        raise Refusal(404, "fulfillment-not-found")
    found: Document = order["fulfillments"][number - 1]
    return found


def track(order: Document, number: int, body: Document, at: datetime) -> str | None:
    fulfillment = fulfillment_of(order, number)
    tracking = merged(fulfillment["tracking"], body["tracking"]) or None
    if tracking == fulfillment["tracking"]:
        return None
    require("track", order)
    fulfillment["tracking"] = tracking
    return "fulfillment_updated"


def deliver(order: Document, number: int, body: Document, at: datetime) -> str:
    fulfillment = fulfillment_of(order, number)
    require("track", order)
    if fulfillment["status"] == "cancelled":
        raise illegal(order)
    if body["type"] == "cancelled":
        left = returnable(order)
        if fulfillment["status"] == "delivered" or any(
            left[entry["line"]] < entry["quantity"] for entry in fulfillment["items"]
        ):
            raise illegal(order)
    event = {"type": body["type"], "occurred_at": reported(body.get("occurred_at"), at)}
    fulfillment["events"].append(event | {"description": body.get("description")})
    if body["type"] == "cancelled":
        fulfillment["status"] = "cancelled"
        if order["status"] == "completed" and not any(map(open_units, order["items"])):
            order["status"] = "confirmed"
    else:
        newest = max(event["occurred_at"] for event in fulfillment["events"])
        [*_, fulfillment["status"]] = [
            event["type"] for event in fulfillment["events"] if event["occurred_at"] == newest
        ]
    return "fulfillment_updated"


def record_return(order: Document, body: Document, at: datetime) -> str:
    require("return", order)
    require_units(body["items"], returnable(order))
    record = {"number": len(order["returns"]) + 1, "items": body["items"], "status": body["status"]}
    order["returns"].append(record | {"reason": body.get("reason"), "created_at": text_of(at)})
    return "returned" if body["status"] == "received" else "return_expected"


def receive(order: Document, number: int, at: datetime) -> str | None:
    return settle(order, number, "received")


def reject(order: Document, number: int, at: datetime) -> str | None:
    return settle(order, number, "rejected")


def settle(order: Document, number: int, status: str) -> str | None:
    if number > len(order["returns"]):
        raise Refusal(404, "return-not-found")
    return_ = order["returns"][number - 1]
    if return_["status"] == status:
        return None
    if return_["status"] != "expected":
        raise illegal(order)
    return_["status"] = status
    return f"return_{status}"


def require_units(units: Units, left: dict[int, int]) -> None:
    unknown = [f"items/{i}" for i, entry in enumerate(units) if entry["line"] not in left]
    if unknown:
        raise invalid(*unknown)
    too_many = [f"items/{i}" for i, entry in enumerate(units) if entry["quantity"] > left[entry["line"]]]
    if too_many:
        raise Refusal(409, "quantity-exceeded", pointers=too_many)


def update(order: Document, patch: Document, at: datetime) -> str | None:
    before = content_of(order)
    content = checked_content(merged({name: value for name, value in before.items() if value is not None}, patch))
    changed = {name for name in content if content[name] != before[name]}
    if not changed:
        return None
    if order["status"] != "pending" and changed.intersection(ONLY_WHILE_PENDING):
        raise illegal(order)
    if "currency" in changed and order["payments"]:
        raise illegal(order)
    if "items" in changed:
        if any(item["cancelled"] for item in order["items"]):
            raise illegal(order)
        order["items"] = new_lines(content["items"])
    if "ship_by" in changed:
        order["late"] = False
    order |= {name: content[name] for name in changed - {"items"}}
    return "updated"


def merged(target: Any, patch: Any) -> Any:
    """The algorithm of RFC 7396 §2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name in patch:
        if patch[name] is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), patch[name])
    return result


# Each changes the document, and returns the event, or None if nothing has changed.
CHANGES: dict[str, Callable[..., str | None]] = {
    "confirm": confirm,
    "cancel": cancel,
    "complete": complete,
    "reopen": reopen,
    "hold": hold,
    "release": release,
    "pay": pay,
    "fulfill": fulfill,
    "track": track,
    "deliver": deliver,
    "return": record_return,
    "receive": receive,
    "reject": reject,
    "update": update,
}


def checked_body(action: str, body: Any) -> Any:
    """The body with its times in the format of documents."""
    faults = []
    if action in ("cancel", "fulfill", "return") and "items" in body:
        lines = [entry["line"] for entry in body["items"]]
        faults += [f"items/{i}/line" for i in range(len(lines)) if lines[i] in lines[:i]]
        faults += ["items"] if not lines else []
    if action == "cancel" and body["reason"] not in REASONS:
        faults += ["reason"]
    if action == "hold" and body["kind"] not in KINDS:
        faults += ["kind"]
    if action == "deliver" and body["type"] not in DELIVERY_EVENTS:
        faults += ["type"]
    if action == "pay" and body["amount"] < 1:
        faults += ["amount"]
    if action == "update":
        faults += body.keys() - PATCH_MEMBERS
    if action in ("cancel", "update"):
        faults += positive_discounts(body)
    if faults:
        raise invalid(*faults)
    if action == "return":
        body = {"status": "received"} | body
    times = {name: normal_time(body[name]) for name in ("until", "occurred_at") if body and name in body}
    return body | times if times else body


def positive_discounts(body: Document) -> list[str]:
    adjustments = enumerate(body.get("adjustments") or [])
    return [
        f"adjustments/{i}/amount"
        for i, adjustment in adjustments
        if adjustment["type"] == "discount" and adjustment["amount"] > 0
    ]


def content_of(body: Document) -> Document:
    """The content of a body with its absent members, or the content that the caller of a document sent."""
    return {
        "customer_id": body["customer_id"],
        "external_ref": body.get("external_ref"),
        "channel": body.get("channel"),
        "currency": body.get("currency"),
        "items": [
            {name: item.get(name) for name in ("item_id", "title", "quantity", "unit_price")} for item in body["items"]
        ],
        "adjustments": [adjustment_of(adjustment) for adjustment in body.get("adjustments", [])],
        "ship_by": normal_time(body.get("ship_by")),
        "deliver_by": normal_time(body.get("deliver_by")),
        "related_orders": [
            related | {"order_id": related["order_id"].lower()} for related in body.get("related_orders", [])
        ],
        "tags": body.get("tags", []),
        "shipping_address": body.get("shipping_address"),
        "billing_address": body.get("billing_address"),
        "note": body.get("note"),
        "metadata": body.get("metadata", {}),
    }


CREATION_MEMBERS = content_of({"customer_id": "c-1", "items": []}).keys()
PATCH_MEMBERS = CREATION_MEMBERS - {"customer_id", "channel"}


def adjustment_of(body: Document) -> Document:
    return {name: body.get(name) for name in ("type", "label", "amount", "line")}


def checked_content(body: Document) -> Document:
    content = content_of(body)
    faults = [*(body.keys() - CREATION_MEMBERS), *positive_discounts(content)]
    faults += [
        f"{name}/country"
        for name in ("shipping_address", "billing_address")
        if content[name] is not None and "country" not in content[name]
    ]
    incomplete = bool(faults)
    if has_prices(content) and content["currency"] is None:
        faults += ["currency"]
    if not incomplete:  # only valid members are compared with each other
        faults += price_errors(content)
        faults += ["tags"] if len(set(content["tags"])) < len(content["tags"]) else []
    if faults:
        raise invalid(*faults)
    return content


def has_prices(content: Document) -> bool:
    return content["adjustments"] != [] or any(item["unit_price"] is not None for item in content["items"])


def subtotal(item: Document) -> int | None:
    return None if item["unit_price"] is None else item["unit_price"] * item["quantity"]


def price_errors(content: Document) -> list[str]:
    """Discounts of a line within its price, those of the order within what is left, and a total that is not negative.
    Each rule is checked only if the previous one holds."""
    left = [subtotal(item) or 0 for item in content["items"]]
    faults, shared = [], 0
    for i, adjustment in enumerate(content["adjustments"]):
        if adjustment["line"] is not None and adjustment["line"] > len(left):
            faults.append(f"adjustments/{i}/line")
        elif adjustment["type"] == "discount" and adjustment["line"] is None:
            shared += adjustment["amount"]
        elif adjustment["type"] == "discount" and left[adjustment["line"] - 1] + adjustment["amount"] < 0:
            faults.append(f"adjustments/{i}/amount")
        elif adjustment["type"] == "discount":
            left[adjustment["line"] - 1] += adjustment["amount"]
    if faults:
        return faults
    ordered = sum(subtotal(item) or 0 for item in content["items"])
    total = ordered + sum(adjustment["amount"] for adjustment in content["adjustments"])
    return ["adjustments"] if sum(left) + shared < 0 or total < 0 else []


def discounts(content: Document) -> list[int]:
    """The discount of each line, given prices without a fault."""
    amounts = [adjustment for adjustment in content["adjustments"] if adjustment["type"] == "discount"]
    own = [
        sum(adjustment["amount"] for adjustment in amounts if adjustment["line"] == i)
        for i in range(1, len(content["items"]) + 1)
    ]
    left = [(subtotal(item) or 0) + discount for item, discount in zip(content["items"], own, strict=True)]
    shared = -sum(adjustment["amount"] for adjustment in amounts if adjustment["line"] is None)
    return [discount - share for discount, share in zip(own, largest_remainder(shared, left), strict=True)]


def largest_remainder(amount: int, weights: list[int]) -> list[int]:
    if amount == 0:
        return [0] * len(weights)
    exact = [Fraction(amount * weight, sum(weights)) for weight in weights]
    shares = [floor(share) for share in exact]
    while sum(shares) < amount:
        remainders = [part - share for part, share in zip(exact, shares, strict=True)]
        shares[remainders.index(max(remainders))] += 1
    return shares


def derived(order: Document) -> Document:
    """The document with all derived members."""
    if faults := price_errors(order):
        raise invalid(*faults)
    count_units(order)
    lines = [
        item | {"subtotal": subtotal(item), "discount": discount, "total": line_total(item, discount)}
        for item, discount in zip(order["items"], discounts(order), strict=True)
    ]
    order = order | {"items": lines}
    order["totals"] = totals(order)
    if order["totals"] and order["totals"]["total"] < 0:
        raise invalid("adjustments")
    if order["totals"] is None and order["payments"]:
        raise invalid("adjustments")
    order |= statuses(order)
    order["late"] = order["late"] and can_be_late(order)
    return order | {"allowed_actions": allowed_actions(order)}


def line_total(item: Document, discount: int) -> int | None:
    price = subtotal(item)
    return None if price is None else price + discount


def count_units(order: Document) -> None:
    records = {
        "cancelled": [cancellation for cancellation in order["cancellations"] if cancellation["reopened_at"] is None],
        "fulfilled": [fulfillment for fulfillment in order["fulfillments"] if fulfillment["status"] != "cancelled"],
        "returned": [return_ for return_ in order["returns"] if return_["status"] == "received"],
    }
    for item in order["items"]:
        for name in records:
            entries = [entry for record in records[name] for entry in record["items"]]
            item[name] = sum(entry["quantity"] for entry in entries if entry["line"] == item["line"])


def totals(order: Document) -> dict[str, int] | None:
    if not has_prices(order):
        return None
    items = sum(item["subtotal"] or 0 for item in order["items"])
    adjustments = sum(adjustment["amount"] for adjustment in order["adjustments"])
    cancelled = items + adjustments
    if order["status"] != "cancelled":
        cancelled = sum(
            floor(Fraction(item["total"] * item["cancelled"], item["quantity"]))
            for item in order["items"]
            if item["total"] is not None
        )
    total = items + adjustments - cancelled
    _, paid, refunded = sums_of(order["payments"])
    waived = sum(payment["waived"] for payment in since_reopening(order))
    missing, excess = total - waived - paid + refunded, paid - refunded - total
    due = missing if missing > 0 else -excess if excess > 0 else 0
    return {
        "items": items,
        "adjustments": adjustments,
        "cancelled": -cancelled,
        "total": total,
        "paid": paid,
        "refunded": refunded,
        "due": due,
    }


def since_reopening(order: Document) -> list[Document]:
    """The payments since the cancelled order was reopened."""
    reopened = max((cancellation["reopened_at"] or "" for cancellation in order.get("cancellations", ())), default="")
    return [payment for payment in counting(order["payments"]) if payment["created_at"] > reopened]


def statuses(order: Document) -> dict[str, str]:
    fulfilled, returned = (sum(item[name] for item in order["items"]) for name in ("fulfilled", "returned"))
    sent = [shipment for shipment in order["fulfillments"] if shipment["status"] != "cancelled"]
    if not sent:
        fulfillment = "unfulfilled"
    elif any(map(open_units, order["items"])):
        fulfillment = "partial"
    else:
        fulfillment = "delivered" if {shipment["status"] for shipment in sent} == {"delivered"} else "fulfilled"
    authorized, captured, refunded = sums_of(order["payments"])
    is_due = order["totals"] is not None and order["totals"]["due"] > 0
    if captured > refunded:
        returned_money = sums_of(since_reopening(order))[2] > 0
        payment = "partially_paid" if is_due else "partially_refunded" if returned_money else "paid"
    elif captured and not is_due:
        payment = "refunded"
    else:
        payment = "authorized" if authorized else "unpaid"
    if returned:
        return_ = "partial" if returned < fulfilled else "returned"
    else:
        return_ = "none"
    return {"fulfillment_status": fulfillment, "payment_status": payment, "return_status": return_}


def new_lines(items: list[Document]) -> list[Document]:
    return [{"line": i, **item, "cancelled": 0, "fulfilled": 0, "returned": 0} for i, item in enumerate(items, start=1)]


def new_document(content: Document) -> Document:
    records: Document = {name: [] for name in ("holds", "payments", "fulfillments", "returns", "cancellations")}
    return (
        content
        | records
        | {"status": "pending", "late": False, "reopening": None, "items": new_lines(content["items"])}
    )
