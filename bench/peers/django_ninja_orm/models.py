"""The tables, as Django models."""

from django.db import models

from bench.peers import orders


class Order(models.Model):
    id = models.UUIDField(primary_key=True)
    number = models.CharField(max_length=15, unique=True)
    customer_id = models.CharField(max_length=64)
    external_ref = models.CharField(max_length=64, null=True, unique=True)
    idempotency_key = models.CharField(max_length=255, null=True, unique=True)
    fingerprint = models.CharField(max_length=32)
    status = models.CharField(max_length=16, default="pending")
    fulfillment_status = models.CharField(max_length=16, default="unfulfilled")
    currency = models.CharField(max_length=3, null=True)
    adjustments = models.JSONField()
    items_total = models.BigIntegerField(null=True)
    adjustments_total = models.BigIntegerField(null=True)
    shipping_address = models.JSONField(null=True)
    billing_address = models.JSONField(null=True)
    note = models.TextField(null=True)
    metadata = models.JSONField()
    version = models.IntegerField(default=1)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    holds: tuple[()] = ()
    cancellations: tuple[()] = ()
    fulfillments: tuple[()] = ()
    returns: tuple[()] = ()

    class Meta:
        db_table = "orders"
        indexes = [
            models.Index(fields=["customer_id", "id"], name="orders_customer"),
            models.Index(fields=["status", "id"], name="orders_status"),
            models.Index(fields=["fulfillment_status", "id"], name="orders_fulfillment_status"),
        ]

    @property
    def totals(self) -> dict[str, int] | None:
        return orders.totals(self.items_total, self.adjustments_total)

    @property
    def allowed_actions(self) -> list[str]:
        return orders.ALLOWED_ACTIONS[self.status]


class OrderItem(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="items", db_index=False)
    line = models.IntegerField()
    item_id = models.CharField(max_length=64)
    quantity = models.IntegerField()
    unit_price = models.BigIntegerField(null=True)
    fulfilled = models.IntegerField(default=0)
    returned = models.IntegerField(default=0)
    pk = models.CompositePrimaryKey("order_id", "line")

    class Meta:
        db_table = "order_items"
        ordering = ["line"]
        indexes = [models.Index(fields=["item_id", "order"], name="order_items_item")]


class OrderEvent(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, db_index=False)
    version = models.IntegerField()
    type = models.CharField(max_length=32)
    at = models.DateTimeField()
    snapshot = models.TextField()
    pk = models.CompositePrimaryKey("order_id", "version")

    class Meta:
        db_table = "order_events"


class OutboxEntry(models.Model):
    order_id = models.UUIDField()
    version = models.IntegerField()
    at = models.DateTimeField()
    pk = models.CompositePrimaryKey("order_id", "version")

    class Meta:
        db_table = "outbox"
