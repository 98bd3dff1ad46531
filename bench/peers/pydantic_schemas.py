"""Schemas of the FastAPI and Django Ninja peers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Required, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import TypedDict

from bench.peers import orders


def text(high: int, low: int = 1, pattern: str = orders.TEXT) -> Any:
    # Pydantic's own regular expressions have no \\Z; their $ is the same.
    return Annotated[str, StringConstraints(min_length=low, max_length=high, pattern=pattern.replace(r"\Z", "$"))]


Id = text(orders.ID_MAX)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ItemIn(Strict):
    item_id: Id
    quantity: Annotated[int, Field(ge=1, le=orders.QUANTITY_MAX)]
    unit_price: Annotated[int, Field(ge=0, le=orders.PRICE_MAX)] | None = None


class AdjustmentIn(Strict):
    type: Literal[orders.ADJUSTMENT_TYPES]
    label: text(100) | None = None
    amount: Annotated[int, Field(ge=-orders.PRICE_MAX, le=orders.PRICE_MAX)]


class Address(TypedDict, total=False):
    """A dictionary without the members that were not sent."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: text(200)
    company: text(200)
    line1: text(200)
    line2: text(200)
    city: text(100)
    region: text(100)
    postal_code: text(20)
    country: Required[text(2, 2, orders.COUNTRY)]
    phone: text(40)
    email: text(254)


class OrderIn(Strict):
    customer_id: Id
    items: Annotated[list[ItemIn], Field(min_length=1, max_length=orders.ITEMS_MAX)]
    external_ref: Id | None = None
    currency: Literal[orders.CURRENCIES] | None = None
    adjustments: Annotated[list[AdjustmentIn], Field(max_length=orders.ADJUSTMENTS_MAX)] = []
    shipping_address: Address | None = None
    billing_address: Address | None = None
    note: text(orders.NOTE_MAX, 0, orders.PROSE) | None = None
    metadata: Annotated[dict[text(40), text(500, 0)], Field(max_length=50)] = {}

    @model_validator(mode="after")
    def check_sums(self) -> Self:
        items = [{"quantity": item.quantity, "unit_price": item.unit_price} for item in self.items]
        orders.check_sums(self.currency, items, [{"amount": adjustment.amount} for adjustment in self.adjustments])
        return self


class BatchEntryIn(OrderIn):
    idempotency_key: text(orders.KEY_MAX) | None = None


class BatchIn(Strict):
    """Entries are validated separately, so that an invalid one does not affect the others."""

    orders: Annotated[list[Any], Field(min_length=1, max_length=orders.BATCH_MAX)]


class ItemOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    line: int
    item_id: str
    quantity: int
    unit_price: int | None
    fulfilled: int
    returned: int


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    number: str
    customer_id: str
    external_ref: str | None
    status: str
    fulfillment_status: str
    holds: list[Any]
    currency: str | None
    items: list[ItemOut]
    adjustments: list[dict[str, Any]]
    totals: dict[str, int] | None
    shipping_address: dict[str, str] | None
    billing_address: dict[str, str] | None
    note: str | None
    metadata: dict[str, str] = Field(validation_alias="metadata_")
    cancellations: list[Any]
    fulfillments: list[Any]
    returns: list[Any]
    version: int
    allowed_actions: list[str]
    created_at: datetime
    updated_at: datetime


class OrderList(BaseModel):
    orders: list[OrderOut]
    next_cursor: str | None
