"""Random bodies, keys and conditions of the requests that `test_order_model.py` sends.

Each request is derived from one drawn number. With strategies, a sequence of dozens of requests would need more choices
than Hypothesis allows for one example, and it prefers the simplest examples, in which little happens.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st

Value = TypeVar("Value")
Change = tuple[str, Any, Any]  # the action, the hold or record that it is about, and the body
Document = dict[str, Any]

START = datetime(2026, 6, 1, 12, tzinfo=UTC)  # the start of each sequence
THE_REST = "the rest"  # all remaining units: otherwise few orders would be fulfilled completely
ABSENT: Any = object()


class RandomValues(Random):
    """Random values from small sets, so that conflicts are likely."""

    def one(self, *values: Any) -> Any:
        return self.choice(values)

    def some(self, make: Callable[[], Any], low: int, high: int) -> list[Any]:
        return [make() for _ in range(self.randint(low, high))]

    def members(self, **members: Any) -> Document:
        """An object, without the members that are ABSENT."""
        return {name: value for name, value in members.items() if value is not ABSENT}

    def rarely(self, value: Any, *others: Any) -> Any:
        """The value, or most of the time ABSENT."""
        return self.one(ABSENT, ABSENT, ABSENT, value, *others)

    def text(self) -> str:
        text: str = self.one("", "a", "Ring twice.\n🛎")
        return text

    def time(self) -> str:
        zone = self.one(UTC, UTC, timezone(timedelta(hours=2)))
        return (START + timedelta(hours=self.one(-48, -1, 1, 2, 6, 30, 60))).astimezone(zone).isoformat()

    def order(self) -> Document:
        return self.members(
            customer_id=self.one("c-1", "c-2"),
            items=self.some(self.item, 1, 3),
            currency=self.one("EUR", "EUR", "EUR", "EUR", "EUR", "JPY", None),
            external_ref=self.reference(),
            channel=self.one(ABSENT, None, "web", "app"),
            adjustments=self.one(ABSENT, self.adjustments()),
            ship_by=self.rarely(None, self.time(), self.time()),
            deliver_by=self.rarely(None, self.time()),
            related_orders=self.rarely(self.related_orders()),
            tags=self.rarely(self.tags()),
            shipping_address=self.rarely(self.address()),
            billing_address=self.rarely(None, self.address()),
            note=self.rarely(self.text()),
            metadata=self.rarely(self.metadata()),
        )

    def item(self) -> Document:
        return self.members(
            item_id=self.one("sku-1", "sku-2"),
            quantity=self.randint(1, 3),
            unit_price=self.one(250, 250, 3, 0, None, ABSENT),
            title=self.rarely("Mug", None),
        )

    def adjustments(self) -> list[Document]:
        return self.some(self.adjustment, 0, 3)

    def adjustment(self) -> Document:
        if self.random() < 0.6:
            amount, line = self.one(-1, -7, -100, -100, 0), self.one(ABSENT, None, 1, 1, 2, 3)
            return self.members(type="discount", amount=amount, line=line)
        return self.members(
            type=self.one("tax", "shipping", "shipping", self.one("tax", "discount")),  # which must not be positive
            amount=self.one(19, 490, -20),
            label=self.one(ABSENT, None, "WELCOME10"),
            line=self.rarely(1, None),
        )

    def address(self) -> Document:
        country = self.one("DE", "GB", "GB", ABSENT)  # it is required
        return self.members(country=country, city=self.one(ABSENT, "Ulm"), name=self.one(ABSENT, "Ada"))

    def related_orders(self) -> list[Document]:
        order_id = "019dab70-c2b3-7c51-b9f8-1d6f2a6c3e11"
        related = {"order_id": self.one(order_id, order_id.upper()), "relation": self.one("exchange", "split")}
        return self.one([], [related])  # type: ignore[no-any-return]

    def tags(self) -> list[str]:
        return self.some(lambda: self.one("gift", "vip", "b2b"), 0, 2)

    def metadata(self) -> dict[str, str]:
        return self.members(a=self.one(ABSENT, "", "x"), b=self.one(ABSENT, "", "x"))

    def reference(self) -> Any:
        return self.one(ABSENT, ABSENT, None, "r-1", "r-2", "r-3")

    def patch(self) -> Document:
        members = {
            "external_ref": self.one(None, "r-1", "r-2"),
            "note": self.one(None, self.text()),
            "metadata": self.one(None, {}, {"a": "x"}, {"a": None, "b": ""}),
            "items": self.some(self.item, 1, 3),
            "adjustments": self.one(None, self.adjustments()),
            "currency": self.one("EUR", "JPY", None),
            "ship_by": self.one(None, self.time()),
            "deliver_by": self.one(None, self.time()),
            "related_orders": self.one(None, self.related_orders()),
            "tags": self.one(None, self.tags()),
            "shipping_address": self.one(None, {}, {"country": None}, {"country": "FR"}, {"city": None, "name": "E"}),
            "billing_address": self.one(None, self.address()),
            "customer_id": "c-9",  # cannot be patched
            "channel": self.one("web", None),  # nor can this
        }
        # A patch with many errors is refused for the first one, and tests little.
        return {name: members[name] for name in self.sample(sorted(members), self.randint(0, 3))}

    def change(self, *names: str) -> Change:
        name = self.one(*names)
        target = None
        if name in ("hold", "release"):
            target = self.one("fraud", "review-2")
        elif name in ("track", "deliver", "receive", "reject"):
            target = self.one(1, 1, 1, 2, 2, 3)
        return name, target, BODIES[name](self) if name in BODIES else None

    def units(self) -> Any:
        units = self.some(lambda: {"line": self.one(1, 1, 2, 3), "quantity": self.one(1, 1, 2)}, 0, 3)
        return self.one(THE_REST, THE_REST, units[:1], units)

    def cancellation(self) -> Document:
        return self.members(
            reason=self.one("fraud", "other", "staff", "customer", "mood"),
            note=self.rarely(self.text()),
            items=self.one(ABSENT, *self.some(self.units, 4, 4)),
            adjustments=self.rarely(self.adjustments()),
        )

    def hold(self) -> Document:
        until = self.one(ABSENT, None, self.time(), self.time())
        return self.members(kind=self.one("fraud", "address", "mood"), reason=self.rarely("a", None), until=until)

    def payment(self) -> Document:
        return self.members(
            type=self.one(
                *("authorization", "void", "capture", "capture", "capture", "refund", "chargeback"),
                self.one("capture_reversal", "capture_reversal", "refund_reversal", "chargeback_reversal"),
            ),
            amount=self.one(1, 100, 100, 250, 500, self.one(750, 0)),
            reference=self.one("p-1", "p-2", "p-3", "p-4", "p-5"),
            method=self.rarely("card"),
            occurred_at=self.rarely(None, self.time()),
            note=self.rarely(self.text()),
        )

    def tracking(self) -> Document:
        return self.members(carrier=self.one(ABSENT, "DHL"), number=self.one(ABSENT, "1", "2"))

    def fulfillment(self) -> Document:
        return self.members(items=self.units(), tracking=self.one(ABSENT, None, self.tracking()))

    def tracking_patch(self) -> Document:
        return {"tracking": self.one(None, self.tracking(), {"carrier": "UPS", "number": None}, {"number": None}, {})}

    def delivery_event(self) -> Document:
        types = "in_transit", "delivered", "delivered", "failed_attempt", "returned_to_sender", "cancelled", "lost"
        occurred_at = self.one(ABSENT, None, self.time(), self.time())
        return self.members(type=self.one(*types), occurred_at=occurred_at, description=self.rarely("a", None))

    def returned(self) -> Document:
        status = self.one(ABSENT, "expected", "expected", "received")
        return self.members(items=self.units(), reason=self.rarely(self.text()), status=status)

    def filters(self) -> dict[str, str]:
        return self.members(
            customer_id=self.rarely("c-1"),
            status=self.rarely("pending", "confirmed", "completed,cancelled"),
            fulfillment_status=self.rarely("unfulfilled", "partial", "fulfilled,delivered"),
            payment_status=self.rarely("unpaid", "paid", "authorized,partially_paid", "refunded"),
            return_status=self.rarely("none", "partial,returned"),
            channel=self.rarely("web", "app"),
            external_ref=self.rarely("r-1", "r-2"),
            item_id=self.rarely("sku-1", "sku-2"),
        )


BODIES: dict[str, Callable[[RandomValues], Document]] = {
    "cancel": RandomValues.cancellation,
    "reopen": lambda chance: {"reason": chance.one("a", "b")},
    "hold": RandomValues.hold,
    "pay": RandomValues.payment,
    "fulfill": RandomValues.fulfillment,
    "track": RandomValues.tracking_patch,
    "deliver": RandomValues.delivery_event,
    "return": RandomValues.returned,
    "update": RandomValues.patch,
}
ACTIONS = (*BODIES, "confirm", "complete", "release", "receive", "reject")


def random_actor(make: Callable[[RandomValues], Value]) -> st.SearchStrategy[Value]:
    return st.integers(0, 2**24 - 1).map(lambda seed: make(RandomValues(seed)))


def change_by(*names: str) -> st.SearchStrategy[Change]:
    return random_actor(lambda chance: chance.change(*names))


def key(chance: RandomValues) -> str | None:
    return chance.one(None, None, "k-1", "k-2", "k-3")  # type: ignore[no-any-return]


conditions = ["absent"] * 12 + ["right", "right", "*", "several", "stale", "weak", "unknown"]
orders = random_actor(lambda chance: (chance.order(), key(chance)))
keys = random_actor(key)
# The place of the order, the change, the idempotency key, and the kind of condition.
changes = random_actor(
    lambda chance: (
        chance.randint(0, 2),
        chance.change(*ACTIONS, "update", "deliver", "pay", "cancel"),
        key(chance),
        chance.choice(conditions),
    )
)
filters = random_actor(RandomValues.filters)
