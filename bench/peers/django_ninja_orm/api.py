"""The API, in Django Ninja; also the root of the URLs."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from ninja import Header, NinjaAPI, Query, Schema
from ninja.errors import HttpError, ValidationError
from ninja.renderers import BaseRenderer
from pydantic import Field

from bench.peers import orders
from bench.peers.django_ninja_orm.models import Order, OrderEvent, OrderItem, OutboxEntry
from bench.peers.pydantic_schemas import ItemOut, OrderIn
from bench.peers.pydantic_schemas import OrderOut as OrderBase

JSON = "application/json"


class ORJSONRenderer(BaseRenderer):
    """As Ninja's documentation advises. Django's own encoder also cuts times to the millisecond."""

    media_type = JSON

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        return orjson.dumps(data)


api = NinjaAPI(openapi_url=None, renderer=ORJSONRenderer())


class OrderOut(OrderBase, Schema):
    """Ninja's own base reads the items through Django's manager."""

    items: list[ItemOut]
    metadata: dict[str, str] = Field(validation_alias="metadata")


class OrderList(Schema):
    orders: list[OrderOut]
    next_cursor: str | None


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    return api.create_response(request, {"detail": [fault["msg"] for fault in error.errors]}, status=400)


@api.post("/orders", response={201: OrderOut})
def create_order(
    request: HttpRequest,
    body: OrderIn,
    key: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=orders.KEY_MAX)] = None,
) -> HttpResponse:
    data = body.model_dump()
    digest = orders.fingerprint(data)
    try:
        return HttpResponse(store(data, key, digest), JSON, 201)
    except IntegrityError:
        return HttpResponse(replay(key, digest), JSON, 201, headers=orders.REPLAYED)


@api.get("/orders/{uuid:order_id}", response=OrderOut)
def get_order(request: HttpRequest, order_id: UUID) -> Order:
    return get_object_or_404(Order.objects.prefetch_related("items"), id=order_id)


@api.get("/orders", response=OrderList)
def list_orders(
    request: HttpRequest, limit: Annotated[int, Query(ge=1, le=orders.PAGE_MAX)] = 20, cursor: UUID | None = None
) -> dict[str, Any]:
    query = Order.objects.prefetch_related("items").order_by("-id")
    if cursor is not None:
        query = query.filter(id__lt=cursor)
    found = list(query[: limit + 1])
    page = found[:limit]
    return {"orders": page, "next_cursor": str(page[-1].id) if len(found) > limit else None}


@api.post("/orders/{uuid:order_id}/confirm", response=OrderOut)
def confirm_order(request: HttpRequest, order_id: UUID) -> HttpResponse:
    with transaction.atomic():
        order = get_object_or_404(Order.objects.select_for_update(), id=order_id)
        if order.status != "pending":
            raise HttpError(409, "The order is not pending.")
        order.status, order.version, order.updated_at = "confirmed", order.version + 1, orders.now()
        order.save(update_fields=["status", "version", "updated_at"])
        return HttpResponse(add_event(order, "order.confirmed"), JSON)


def store(data: dict[str, Any], key: str | None, digest: str) -> str:
    """Store an order, its items, its event and its outbox entry; return its document."""
    at, order_id = orders.now(), orders.new_id()
    items = data.pop("items")
    items_total, adjustments_total = orders.sums(items, data["adjustments"])
    with transaction.atomic():
        order = Order.objects.create(
            **data,
            id=order_id,
            number=orders.order_number(order_id, at),
            idempotency_key=key,
            fingerprint=digest,
            items_total=items_total,
            adjustments_total=adjustments_total,
            created_at=at,
            updated_at=at,
        )
        lines = [OrderItem(order=order, line=i, **item) for i, item in enumerate(items, start=1)]
        order._prefetched_objects_cache = {"items": OrderItem.objects.bulk_create(lines)}  # not to be read again
        return add_event(order, "order.created")


def add_event(order: Order, event: str) -> str:
    document = OrderOut.model_validate(order).model_dump_json()
    at, version = order.updated_at, order.version
    OrderEvent.objects.create(order=order, version=version, type=event, at=at, snapshot=document)
    OutboxEntry.objects.create(order_id=order.id, version=version, at=at)
    return document


def replay(key: str | None, digest: str) -> str:
    order = key and Order.objects.filter(idempotency_key=key).first()
    if not order:
        raise HttpError(409, "Another order has this external_ref.")
    if order.fingerprint != digest:
        raise HttpError(422, "The key was used with another body.")
    return OrderEvent.objects.get(order=order, version=1).snapshot


urlpatterns = [path("", api.urls)]
