"""Flask with Flask-SQLAlchemy and marshmallow, as tutorials teach it. Run as a command it creates the tables."""

import os
from datetime import datetime
from typing import Any
from uuid import UUID

from flask import Flask, Response, abort, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, ValidationError, fields, validate, validates_schema
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from bench.peers import orders

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1)
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 10, "max_overflow": 0}
app.json.sort_keys = False
db = SQLAlchemy(app)


class Order(db.Model):
    __tablename__ = "orders"

    id = db.Column(db.Uuid, primary_key=True)
    number = db.Column(db.String(15), nullable=False, unique=True)
    customer_id = db.Column(db.String(64), nullable=False)
    external_ref = db.Column(db.String(64), unique=True)
    idempotency_key = db.Column(db.String(255), unique=True)
    fingerprint = db.Column(db.String(32), nullable=False)
    status = db.Column(db.String(16), nullable=False)
    fulfillment_status = db.Column(db.String(16), nullable=False)
    currency = db.Column(db.String(3))
    adjustments = db.Column(JSONB, nullable=False)
    items_total = db.Column(db.BigInteger)
    adjustments_total = db.Column(db.BigInteger)
    shipping_address = db.Column(JSONB(none_as_null=True))
    billing_address = db.Column(JSONB(none_as_null=True))
    note = db.Column(db.Text)
    metadata_ = db.Column("metadata", JSONB, nullable=False)
    version = db.Column(db.Integer, nullable=False)
    created_at = db.Column(db.DateTime(timezone=True), nullable=False)
    updated_at = db.Column(db.DateTime(timezone=True), nullable=False)
    items = db.relationship("OrderItem", order_by="OrderItem.line", lazy="selectin")

    __mapper_args__ = {"version_id_col": version}
    __table_args__ = (
        db.Index("orders_customer", "customer_id", "id"),
        db.Index("orders_status", "status", "id"),
        db.Index("orders_fulfillment_status", "fulfillment_status", "id"),
    )

    holds = cancellations = fulfillments = returns = ()

    @property
    def totals(self) -> dict[str, int] | None:
        return orders.totals(self.items_total, self.adjustments_total)

    @property
    def allowed_actions(self) -> list[str]:
        return orders.ALLOWED_ACTIONS[self.status]


class OrderItem(db.Model):
    __tablename__ = "order_items"

    order_id = db.Column(db.ForeignKey(Order.id), primary_key=True)
    line = db.Column(db.Integer, primary_key=True)
    item_id = db.Column(db.String(64), nullable=False)
    quantity = db.Column(db.Integer, nullable=False)
    unit_price = db.Column(db.BigInteger)
    fulfilled = db.Column(db.Integer, nullable=False)
    returned = db.Column(db.Integer, nullable=False)

    __table_args__ = (db.Index("order_items_item", "item_id", "order_id"),)


class OrderEvent(db.Model):
    __tablename__ = "order_events"

    order_id = db.Column(db.ForeignKey(Order.id), primary_key=True)
    version = db.Column(db.Integer, primary_key=True)
    type = db.Column(db.String(32), nullable=False)
    at = db.Column(db.DateTime(timezone=True), nullable=False)
    snapshot = db.Column(db.Text, nullable=False)


class OutboxEntry(db.Model):
    __tablename__ = "outbox"

    order_id = db.Column(db.Uuid, primary_key=True)
    version = db.Column(db.Integer, primary_key=True)
    at = db.Column(db.DateTime(timezone=True), nullable=False)


def text(high: int, low: int = 1, pattern: str = orders.TEXT, **kwargs: Any) -> fields.String:
    return fields.String(validate=[validate.Length(low, high), validate.Regexp(pattern)], **kwargs)


def number(low: int, high: int, **kwargs: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(low, high), **kwargs)


class ItemSchema(Schema):
    line = fields.Integer(dump_only=True)
    item_id = text(orders.ID_MAX, required=True)
    quantity = number(1, orders.QUANTITY_MAX, required=True)
    unit_price = number(0, orders.PRICE_MAX, allow_none=True, load_default=None)
    fulfilled = fields.Integer(dump_only=True)
    returned = fields.Integer(dump_only=True)


class AdjustmentSchema(Schema):
    type = fields.String(required=True, validate=validate.OneOf(orders.ADJUSTMENT_TYPES))
    label = text(100, allow_none=True, load_default=None)
    amount = number(-orders.PRICE_MAX, orders.PRICE_MAX, required=True)


class AddressSchema(Schema):
    name = text(200)
    company = text(200)
    line1 = text(200)
    line2 = text(200)
    city = text(100)
    region = text(100)
    postal_code = text(20)
    country = text(2, 2, orders.COUNTRY, required=True)
    phone = text(40)
    email = text(254)


class OrderSchema(Schema):
    id = fields.UUID(dump_only=True)
    number = fields.String(dump_only=True)
    customer_id = text(orders.ID_MAX, required=True)
    external_ref = text(orders.ID_MAX, allow_none=True, load_default=None)
    status = fields.String(dump_only=True)
    fulfillment_status = fields.String(dump_only=True)
    holds = fields.List(fields.Dict(), dump_only=True)
    currency = fields.String(allow_none=True, load_default=None, validate=validate.OneOf(orders.CURRENCIES))
    items = fields.List(fields.Nested(ItemSchema), required=True, validate=validate.Length(1, orders.ITEMS_MAX))
    adjustments = fields.List(
        fields.Nested(AdjustmentSchema), load_default=list, validate=validate.Length(max=orders.ADJUSTMENTS_MAX)
    )
    totals = fields.Dict(dump_only=True)
    shipping_address = fields.Nested(AddressSchema, allow_none=True, load_default=None)
    billing_address = fields.Nested(AddressSchema, allow_none=True, load_default=None)
    note = text(orders.NOTE_MAX, 0, orders.PROSE, allow_none=True, load_default=None)
    metadata = fields.Dict(
        text(40), text(500, 0), attribute="metadata_", load_default=dict, validate=validate.Length(max=50)
    )
    cancellations = fields.List(fields.Dict(), dump_only=True)
    fulfillments = fields.List(fields.Dict(), dump_only=True)
    returns = fields.List(fields.Dict(), dump_only=True)
    version = fields.Integer(dump_only=True)
    allowed_actions = fields.List(fields.String(), dump_only=True)
    created_at = fields.DateTime(dump_only=True)
    updated_at = fields.DateTime(dump_only=True)

    @validates_schema
    def check_sums(self, data: dict[str, Any], **_: Any) -> None:
        try:
            orders.check_sums(data["currency"], data["items"], data["adjustments"])
        except ValueError as error:
            raise ValidationError(str(error)) from None


order_schema = OrderSchema()
orders_schema = OrderSchema(many=True)


@app.errorhandler(ValidationError)
def invalid(error: ValidationError) -> tuple[Response, int]:
    return jsonify(errors=error.messages), 400


@app.post("/orders")
def create_order() -> tuple[Response, int] | tuple[Response, int, dict[str, str]]:
    data = order_schema.load(request.get_json())
    key = request.headers.get("Idempotency-Key")
    at, order_id, digest = orders.now(), orders.new_id(), orders.fingerprint(data)
    items = [OrderItem(line=i, fulfilled=0, returned=0, **item) for i, item in enumerate(data.pop("items"), start=1)]
    items_total, adjustments_total = orders.sums([vars(item) for item in items], data["adjustments"])
    order = Order(
        **data,
        id=order_id,
        number=orders.order_number(order_id, at),
        idempotency_key=key,
        fingerprint=digest,
        status="pending",
        fulfillment_status="unfulfilled",
        items=items,
        items_total=items_total,
        adjustments_total=adjustments_total,
        version=1,
        created_at=at,
        updated_at=at,
    )
    db.session.add(order)
    response = jsonify(order_schema.dump(order))
    add_event(order, "order.created", at, response)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        return replay(key, digest), 201, orders.REPLAYED
    return response, 201


@app.get("/orders/<uuid:order_id>")
def get_order(order_id: UUID) -> Response:
    return jsonify(order_schema.dump(db.get_or_404(Order, order_id)))


@app.get("/orders")
def list_orders() -> Response:
    limit = request.args.get("limit", 20, type=int)
    if not 1 <= limit <= orders.PAGE_MAX:
        abort(400)
    query = db.select(Order).order_by(Order.id.desc()).limit(limit + 1)
    cursor = request.args.get("cursor", type=UUID)
    if cursor is not None:
        query = query.where(Order.id < cursor)
    found = db.session.scalars(query).all()
    page = found[:limit]
    return jsonify(orders=orders_schema.dump(page), next_cursor=str(page[-1].id) if len(found) > limit else None)


@app.post("/orders/<uuid:order_id>/confirm")
def confirm_order(order_id: UUID) -> Response:
    order = db.get_or_404(Order, order_id)
    if order.status != "pending":
        abort(409)
    order.status, order.updated_at = "confirmed", orders.now()
    db.session.flush()  # increments its version
    response = jsonify(order_schema.dump(order))
    add_event(order, "order.confirmed", order.updated_at, response)
    db.session.commit()
    return response


def add_event(order: Order, event: str, at: datetime, response: Response) -> None:
    snapshot = response.get_data(as_text=True)
    db.session.add(OrderEvent(order_id=order.id, version=order.version, type=event, at=at, snapshot=snapshot))
    db.session.add(OutboxEntry(order_id=order.id, version=order.version, at=at))


def replay(key: str | None, digest: str) -> Response:
    order = key and db.session.scalar(db.select(Order).filter_by(idempotency_key=key))
    if not order:
        abort(409)
    if order.fingerprint != digest:
        abort(422)
    first = db.session.get_one(OrderEvent, (order.id, 1))
    return Response(first.snapshot, mimetype="application/json")


if __name__ == "__main__":
    with app.app_context():
        db.create_all()
