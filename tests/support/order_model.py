"""The order service in plain Python: the rules of an order's life written down a second time, without a database.

Nothing of the service is used here, so that the two can be held against each other (`test_order_model.py`). Ids,
numbers and times are left out; an order is named by its place in the list.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]

CREATION_MEMBERS = {
    "customer_id", "channel", "items", "external_ref", "currency", "adjustments", "shipping_address", "billing_address",
    "note", "metadata",
}  # fmt: skip
PATCH_MEMBERS = CREATION_MEMBERS - {"customer_id", "channel"}
ONLY_WHILE_PENDING = ("items", "adjustments", "currency")
REASONS = {"customer", "inventory", "fraud", "declined", "staff", "expired", "other"}


class Refusal(Exception):
    """A problem, by its status and type, and the members that it must have."""

    def __init__(self, status: int, slug: str, **members: Any) -> None:
        super().__init__(status, slug, members)
        self.status, self.slug, self.members = status, slug, members


@dataclass(frozen=True)
class Reply:
    """An order as it was at a version."""

    order: int
    version: int
    replayed: bool = False


@dataclass
class Order:
    """The order's document now and after each change, what happened to it, and the keys that were used on it."""

    now: Document
    versions: list[Document] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    keys: dict[tuple[str, str], tuple[Any, int]] = field(default_factory=dict)

    def record(self, event: str, document: Document) -> None:
        self.now = document | {"version": len(self.versions) + 1, "allowed_actions": allowed_actions(document)}
        self.versions.append(deepcopy(self.now))
        self.events.append(event)


class ReferenceService:
    """All orders of one principal."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.bodies: list[Document] = []  # what each order was created from
        self.keys: dict[str, int] = {}
        self.ref_keys: dict[str, int] = {}  # references that stood for the key of an entry

    def create(self, body: Document, *, key: str | None, ref_is_key: bool = False) -> Reply:
        """In a batch, the reference of an entry without a key is its key."""
        content = checked_content(body, CREATION_MEMBERS)
        if key in self.keys:
            order = self.keys[key]
            if self.bodies[order] != content:
                raise Refusal(422, "idempotency-key-reused")
            return Reply(order, 1, replayed=True)
        reference = content["external_ref"]
        holder = self.holder_of(reference)
        if ref_is_key and key is None and reference is not None:
            created = self.ref_keys.get(reference)
            for order in [one for one in (created, holder) if one is not None]:
                if self.bodies[order] == content:
                    return Reply(order, 1, replayed=True)
            if holder is None and created is not None:
                raise Refusal(409, "duplicate-external-ref", order=created)
        if holder is not None:
            raise Refusal(409, "duplicate-external-ref", order=holder)
        self.orders.append(Order({}))
        if ref_is_key and key is None and reference is not None:
            self.ref_keys[reference] = len(self.orders) - 1
        self.orders[-1].record("created", new_document(content))
        self.bodies.append(content)
        if key is not None:
            self.keys[key] = len(self.orders) - 1
        return Reply(len(self.orders) - 1, 1)

    def act(self, number: int, action: str, body: Any, *, key: str | None, if_match: set[int] | None) -> Reply:
        """`if_match` holds the versions that the header names, None for any."""
        check_body(action, body)
        order = self.orders[number]
        if key is not None and (action, key) in order.keys:
            first_body, version = order.keys[action, key]
            if first_body != body:
                raise Refusal(422, "idempotency-key-reused")
            return Reply(number, version, replayed=True)
        if if_match is not None and order.now["version"] not in if_match:
            raise Refusal(412, "version-mismatch", current_version=order.now["version"])
        document = deepcopy(order.now)
        CHANGES[action](document, body)
        self.check_reference(number, document["external_ref"])
        if document != order.now:
            order.record(EVENTS[action], document)
        if key is not None:  # also where nothing changed
            order.keys[action, key] = deepcopy(body), order.now["version"]
        return Reply(number, order.now["version"])

    def holder_of(self, external_ref: str | None) -> int | None:
        holders = [i for i, o in enumerate(self.orders) if external_ref and o.now["external_ref"] == external_ref]
        return holders[0] if holders else None

    def check_reference(self, number: int, external_ref: str | None) -> None:
        holder = self.holder_of(external_ref)
        if holder not in (None, number):
            raise Refusal(409, "duplicate-external-ref", order=holder)

    def matching(self, **filters: str) -> set[int]:
        def fits(document: Document) -> bool:
            texts = {name: value for name, value in document.items() if isinstance(value, str)}
            items = {item["item_id"] for item in document["items"]}
            others = {name: value for name, value in filters.items() if name != "item_id"}
            return filters.get("item_id") in {None, *items} and others.items() <= texts.items()

        return {i for i, order in enumerate(self.orders) if fits(order.now)}


def allowed_actions(order: Document) -> list[str]:
    names = ["update"]
    open_, held = order["status"] in ("pending", "confirmed"), order["hold"] is not None
    if open_:
        names += ["hold", "release"] if held else ["hold"]
        names += ["cancel"] if order["fulfillment_status"] == "unfulfilled" else []
    if order["status"] == "pending" and not held:
        names += ["confirm"]
    if order["status"] == "confirmed" and not held:
        names += ["complete", "fulfill"]
    if any(item["fulfilled"] > item["returned"] for item in order["items"]):
        names += ["return"]
    return sorted(names)


def require(action: str, order: Document) -> None:
    if action not in allowed_actions(order):
        raise illegal(order)


def illegal(order: Document) -> Refusal:
    return Refusal(409, "illegal-action", order_status=order["status"], allowed_actions=allowed_actions(order))


def invalid() -> Refusal:
    return Refusal(400, "invalid-request")


def confirm(order: Document, _body: None) -> None:
    require("confirm", order)
    order["status"] = "confirmed"


def cancel(order: Document, body: Document) -> None:
    require("cancel", order)
    cancellation = {"reason": body["reason"], "note": body.get("note")}
    order |= {"status": "cancelled", "hold": None, "cancellation": cancellation}


def complete(order: Document, _body: None) -> None:
    require("complete", order)
    order["status"] = "completed"


def hold(order: Document, body: Document) -> None:
    require("hold", order)
    order["hold"] = {"reason": body["reason"]}


def release(order: Document, _body: None) -> None:
    order["hold"] = None


def fulfill(order: Document, body: Document) -> None:
    require("fulfill", order)
    move(order, body["items"], into="fulfilled", out_of="quantity")
    sent = {"number": len(order["fulfillments"]) + 1, "items": body["items"], "tracking": body.get("tracking")}
    order["fulfillments"].append(sent)
    whole = all(item["fulfilled"] == item["quantity"] for item in order["items"])
    order["fulfillment_status"] = "fulfilled" if whole else "partial"
    order["status"] = "completed" if whole else "confirmed"


def take_back(order: Document, body: Document) -> None:
    require("return", order)
    move(order, body["items"], into="returned", out_of="fulfilled")
    order["returns"].append({"number": len(order["returns"]) + 1, "items": body["items"], "reason": body.get("reason")})


def move(order: Document, quantities: list[dict[str, int]], *, into: str, out_of: str) -> None:
    lines = {item["line"]: item for item in order["items"]}
    unknown = [i for i, entry in enumerate(quantities) if entry["line"] not in lines]
    if unknown:
        raise Refusal(400, "invalid-request", pointers=[f"#/items/{i}" for i in unknown])
    too_many = [
        i
        for i, entry in enumerate(quantities)
        if lines[entry["line"]][into] + entry["quantity"] > lines[entry["line"]][out_of]
    ]
    if too_many:
        raise Refusal(409, "quantity-exceeded", pointers=[f"#/items/{i}" for i in too_many])
    for entry in quantities:
        lines[entry["line"]][into] += entry["quantity"]


def update(order: Document, patch: Document) -> None:
    before = content_of(order)
    body = merged({name: value for name, value in before.items() if value is not None}, patch)
    content = checked_content(body, CREATION_MEMBERS)
    if content == before:
        return
    if order["status"] != "pending" and any(content[name] != before[name] for name in ONLY_WHILE_PENDING):
        raise illegal(order)
    if content["items"] == before["items"]:
        del content["items"]  # what has become of the lines stays
    else:
        content["items"] = new_lines(content["items"])
    order |= content
    order["totals"] = totals(order)


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


CHANGES: dict[str, Callable[[Document, Any], None]] = {
    "confirm": confirm,
    "cancel": cancel,
    "complete": complete,
    "hold": hold,
    "release": release,
    "fulfill": fulfill,
    "return": take_back,
    "update": update,
}
EVENTS = {
    "confirm": "confirmed",
    "cancel": "cancelled",
    "complete": "completed",
    "hold": "held",
    "release": "released",
    "fulfill": "fulfilled",
    "return": "returned",
    "update": "updated",
}


def check_body(action: str, body: Any) -> None:
    if action == "cancel" and body["reason"] not in REASONS:
        raise invalid()
    if action == "update" and not body.keys() <= PATCH_MEMBERS:
        raise invalid()
    if action in ("fulfill", "return"):
        lines = [entry["line"] for entry in body["items"]]
        if not lines or len(set(lines)) < len(lines):
            raise invalid()


def content_of(body: Document) -> Document:
    """What a body says, the absent members filled in; of a document, what its caller said."""
    return {
        "customer_id": body["customer_id"],
        "external_ref": body.get("external_ref"),
        "channel": body.get("channel"),
        "currency": body.get("currency"),
        "items": [
            {"item_id": item["item_id"], "quantity": item["quantity"], "unit_price": item.get("unit_price")}
            for item in body["items"]
        ],
        "adjustments": [
            {"type": one["type"], "label": one.get("label"), "amount": one["amount"]}
            for one in body.get("adjustments", [])
        ],
        "shipping_address": body.get("shipping_address"),
        "billing_address": body.get("billing_address"),
        "note": body.get("note"),
        "metadata": body.get("metadata", {}),
    }


def checked_content(body: Document, members: set[str]) -> Document:
    if not body.keys() <= members:
        raise invalid()
    content = content_of(body)
    for address in (content["shipping_address"], content["billing_address"]):
        if address is not None and "country" not in address:
            raise invalid()
    sums = totals(content)
    if sums is not None and (content["currency"] is None or sums["total"] < 0):
        raise invalid()
    return content


def totals(content: Document) -> dict[str, int] | None:
    prices = [item["unit_price"] * item["quantity"] for item in content["items"] if item["unit_price"] is not None]
    amounts = [adjustment["amount"] for adjustment in content["adjustments"]]
    if not prices and not amounts:
        return None
    return {"items": sum(prices), "adjustments": sum(amounts), "total": sum(prices) + sum(amounts)}


def new_lines(items: list[Document]) -> list[Document]:
    return [{"line": i, **item, "fulfilled": 0, "returned": 0} for i, item in enumerate(items, start=1)]


def new_document(content: Document) -> Document:
    return content | {
        "status": "pending",
        "fulfillment_status": "unfulfilled",
        "hold": None,
        "items": new_lines(content["items"]),
        "totals": totals(content),
        "cancellation": None,
        "fulfillments": [],
        "returns": [],
    }
