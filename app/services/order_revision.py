"""Changing what the caller said of an order: its content, seen as the body that would create it."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from app.errors import Forbidden
from app.models import Order
from app.models.principal import Principal
from app.services.new_order import caller_columns, item_columns
from app.services.order_actions import Change

_ITEM_MEMBERS = ("item_id", "quantity", "unit_price")
_PERSONAL = {"note", "shipping_address", "billing_address"}


def revision(revise: Callable[[dict[str, Any]], Mapping[str, Any]], *, principal: Principal) -> Change:
    """The change that brings an order to the content that `revise` makes of its present one.

    `revise` is given the order as a `POST /orders` body without its null members, and returns a validated one. Where
    nothing differs, nothing changes.
    """

    def change(order: Order, at: datetime) -> None:
        data = revise(_body(order))
        stored = order.columns()
        changed = {name: value for name, value in caller_columns(data).items() if value != stored[name]}
        items = item_columns(data)
        if [_said(item) for item in items] != [_said(vars(item)) for item in order.items]:
            changed["items"] = items
        if not changed:
            return
        if principal.customer_id is not None and principal.id != order.principal:
            _require_personal(changed)
        order.update(changed, at=at)

    return change


def _require_personal(changed: Iterable[str]) -> None:
    """Of an order that somebody else made for them, customers change what is theirs to say.

    Not the price a shop gave them, nor its books; and whether a reference is free among its orders is not theirs to
    know.
    """
    others = sorted(set(changed) - _PERSONAL)
    if others:
        raise Forbidden(f"{', '.join(others)}: this belongs to whoever created the order.")


def _said(item: Mapping[str, Any]) -> list[Any]:
    return [item[name] for name in _ITEM_MEMBERS]


def _body(order: Order) -> dict[str, Any]:
    columns = order.columns()
    body: dict[str, Any] = {name: columns[name] for name in caller_columns(columns | {"items": []})}
    body["items"] = [{name: getattr(item, name) for name in _ITEM_MEMBERS} for item in order.items]
    return {name: value for name, value in body.items() if value is not None}
