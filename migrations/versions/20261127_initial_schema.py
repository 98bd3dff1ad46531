"""The initial schema: orders with their items and events; outbox, feed, search, erasures, API keys, webhooks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.db.migrations import require_no_orders

revision = "20261127"
down_revision = None

UUID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIMESTAMP = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")
EMPTY_LIST = sa.text("'[]'")
DIALECTS = ("postgresql", "sqlite")

TABLES = (
    "schema_compatibility", "webhook_deliveries", "webhook_endpoints", "search_head", "order_search_terms",
    "order_search", "api_keys", "erasures", "broker_cursor", "feed_head", "feed",
    "outbox", "change_keys", "order_events", "order_items", "orders"
)  # fmt: skip


def upgrade() -> None:
    create_orders()
    create_order_items()
    create_events()
    create_feed()
    create_erasures()
    create_api_keys()
    create_webhooks()
    create_search()
    create_compatibility()


def downgrade() -> None:
    require_no_orders()
    for table in TABLES:
        op.drop_table(table)


def create_orders() -> None:
    op.create_table(
        "orders",
        sa.Column("id", UUID, nullable=False),
        sa.Column("number", sa.String(15), nullable=False),
        sa.Column("principal", sa.String(128), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("external_ref", sa.String(64)),
        sa.Column("external_ref_hash", sa.String(32)),
        sa.Column("channel", sa.String(64)),
        sa.Column("idempotency_key_hash", sa.String(32)),
        sa.Column("fingerprint", sa.String(32)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("fulfillment_status", sa.String(16), nullable=False, server_default="unfulfilled"),
        sa.Column("payment_status", sa.String(20), nullable=False, server_default="unpaid"),
        sa.Column("return_status", sa.String(16), nullable=False, server_default="none"),
        sa.Column("currency", sa.String(3)),
        sa.Column("adjustments", sa.JSON, nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("holds", sa.JSON, nullable=False, server_default=EMPTY_LIST),
        sa.Column("payments", sa.JSON, nullable=False, server_default=EMPTY_LIST),
        sa.Column("fulfillments", sa.JSON, nullable=False, server_default=EMPTY_LIST),
        sa.Column("returns", sa.JSON, nullable=False, server_default=EMPTY_LIST),
        sa.Column("cancellations", sa.JSON, nullable=False, server_default=EMPTY_LIST),
        sa.Column("reopening", sa.JSON),
        sa.Column("ship_by", TIMESTAMP),
        sa.Column("deliver_by", TIMESTAMP),
        sa.Column("late", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("related_orders", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("shipping_address", sa.JSON),
        sa.Column("billing_address", sa.JSON),
        sa.Column("note", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("due_at", TIMESTAMP),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        # op.f marks the name as final: the naming convention would add its prefix again.
        sa.CheckConstraint(
            "status IN ('pending', 'confirmed', 'completed', 'cancelled')", name=op.f("ck_orders_status")
        ),
        sa.CheckConstraint(
            "fulfillment_status IN ('unfulfilled', 'partial', 'fulfilled', 'delivered')",
            name=op.f("ck_orders_fulfillment_status"),
        ),
        sa.CheckConstraint(
            "payment_status IN ('unpaid', 'authorized', 'partially_paid', 'paid', 'partially_refunded', 'refunded')",
            name=op.f("ck_orders_payment_status"),
        ),
        sa.CheckConstraint("return_status IN ('none', 'partial', 'returned')", name=op.f("ck_orders_return_status")),
    )
    op.create_index("uq_orders_number", "orders", ["number"], unique=True)
    create_partial_unique_index("orders", "idempotency_key_hash", not_null="idempotency_key_hash")
    create_partial_unique_index("orders", "external_ref", "external_ref_hash", not_null="external_ref")
    op.create_index("ix_orders_customer_id_id", "orders", ["customer_id", "id"])
    with_channel = sa.text("channel IS NOT NULL")
    op.create_index(
        "ix_orders_channel_status_id",
        "orders",
        ["channel", "status", "id"],
        postgresql_where=with_channel,
        sqlite_where=with_channel,
    )
    op.create_index("ix_orders_status_id", "orders", ["status", "id"])
    op.create_index("ix_orders_fulfillment_status_id", "orders", ["fulfillment_status", "id"])
    due = sa.text("due_at IS NOT NULL")
    for status, usual in (("payment_status", "unpaid"), ("return_status", "none")):
        name, others = f"ix_orders_{status}_id", sa.text(f"{status} != '{usual}'")
        op.create_index(name, "orders", [status, "id"], postgresql_where=others, sqlite_where=others)
    op.create_index("ix_orders_due_at", "orders", ["due_at"], postgresql_where=due, sqlite_where=due)


def create_order_items() -> None:
    op.create_table(
        "order_items",
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("item_id", sa.String(64), nullable=False),
        sa.Column("title", sa.String(200)),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("unit_price", sa.BigInteger),
        sa.Column("cancelled", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("fulfilled", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("returned", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("order_id", "line", name="pk_order_items"),
        sa.CheckConstraint(
            "0 <= returned AND returned <= fulfilled AND 0 <= cancelled AND cancelled + fulfilled <= quantity",
            name=op.f("ck_order_items_quantities"),
        ),
    )
    op.create_index("ix_order_items_item_id_order_id", "order_items", ["item_id", "order_id"])


def create_events() -> None:
    op.create_table(
        "order_events",
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.Column("traceparent", sa.String(55)),
        sa.Column("at", TIMESTAMP, nullable=False),
        sa.Column("snapshot", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "version", name="pk_order_events"),
    )
    op.create_table(
        "change_keys",
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("key_hash", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("changed", sa.Boolean, nullable=False),
        sa.Column("fingerprint", sa.String(32)),
        sa.PrimaryKeyConstraint("order_id", "key_hash", name="pk_change_keys"),
    )

    op.create_table(
        "outbox",
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "version", name="pk_outbox"),
    )


def create_feed() -> None:
    op.create_table(
        "feed",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=False, nullable=False),
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_feed"),
    )
    op.create_index("uq_feed_order_id_version", "feed", ["order_id", "version"], unique=True)
    head = op.create_table(
        "feed_head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("pruned_seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feed_head"),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "pruned_seq": 0}])
    cursor = op.create_table(
        "broker_cursor",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.String(32), nullable=True),
        sa.Column("leased_until", TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_broker_cursor"),
    )
    op.bulk_insert(cursor, [{"id": 1, "seq": 0}])


def create_erasures() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", UUID, nullable=False),
        sa.Column("customer_id", sa.String(64)),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("orders", sa.Integer, nullable=False),
        sa.Column("order_id", UUID),
        sa.Column("erased_version", sa.Integer, nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("finished_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sa.CheckConstraint("status IN ('running', 'done')", name=op.f("ck_erasures_status")),
    )
    op.create_index("uq_erasures_customer_id", "erasures", ["customer_id"], unique=True)


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("channels", sa.JSON),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("expires_at", TIMESTAMP),
        sa.Column("revoked_at", TIMESTAMP),
        sa.Column("last_used_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )


def create_webhooks() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", UUID, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("events", sa.JSON),
        sa.Column("channels", sa.JSON),
        sa.Column("payload", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("disabled_reason", sa.String(16)),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("previous_secret", sa.Text),
        sa.Column("previous_secret_until", TIMESTAMP),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("consecutive_failures", sa.Integer, nullable=False),
        sa.Column("failing_since", TIMESTAMP),
        sa.Column("reported_at", TIMESTAMP),
        sa.Column("retry_at", TIMESTAMP),
        sa.Column("last_success_at", TIMESTAMP),
        sa.Column("last_failure_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
        sa.CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name=op.f("ck_webhook_endpoints_status")),
    )
    create_webhook_deliveries()


def create_webhook_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("endpoint_id", UUID, nullable=False),
        sa.Column("id", UUID, nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("order_id", UUID),
        sa.Column("version", sa.Integer),
        sa.Column("seq", sa.BigInteger),
        sa.Column("data", sa.JSON),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt_count", sa.Integer, nullable=False),
        sa.Column("attempts", sa.JSON, nullable=False),
        sa.Column("lease", sa.String(32)),
        sa.Column("next_attempt_at", TIMESTAMP),
        sa.Column("first_attempt_at", TIMESTAMP),
        sa.Column("created_at", TIMESTAMP, nullable=False),
        sa.Column("finished_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("endpoint_id", "id", name="pk_webhook_deliveries"),
        sa.CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name=op.f("ck_webhook_deliveries_status")),
    )
    table, of_event = "webhook_deliveries", ["order_id", "version", "endpoint_id"]
    op.create_index("uq_webhook_deliveries_order_id_version_endpoint_id", table, of_event, unique=True)
    pending, timed = "status = 'pending'", "status = 'pending' AND next_attempt_at IS NOT NULL"
    for name, columns, where in (
        ("ix_webhook_deliveries_endpoint_id_next_attempt_at", ["endpoint_id", "next_attempt_at"], timed),
        ("ix_webhook_deliveries_pending", ["endpoint_id", "order_id", "version"], pending),
        ("ix_webhook_deliveries_endpoint_id_finished_at", ["endpoint_id", "finished_at"], "status = 'failed'"),
    ):
        condition = sa.text(where)
        op.create_index(name, table, columns, postgresql_where=condition, sqlite_where=condition)


def create_search() -> None:
    op.create_table(
        "order_search",
        sa.Column("order_id", UUID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(64)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("fulfillment_status", sa.String(16), nullable=False),
        sa.Column("payment_status", sa.String(20), nullable=False),
        sa.Column("return_status", sa.String(16), nullable=False),
        sa.Column("currency", sa.String(3)),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("updated_at", TIMESTAMP, nullable=False),
        sa.Column("terms", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_order_search"),
    )
    create_search_indexes()
    op.create_table(
        "order_search_terms",
        # Ranges of terms are ranges of bytes, whatever the database's collation is.
        sa.Column("term", sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql"), nullable=False),
        sa.Column("order_id", UUID, nullable=False),
        sa.PrimaryKeyConstraint("term", "order_id", name="pk_order_search_terms"),
        sqlite_with_rowid=False,
    )
    head = op.create_table(
        "search_head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_search_head"),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0}])


def create_search_indexes() -> None:
    columns = {"created_at": ["order_id"], "updated_at": ["updated_at", "order_id"], "total": ["total", "order_id"]}
    every = tuple(columns)
    for sort in ("updated_at", "total"):
        op.create_index(f"ix_order_search_{sort}", "order_search", columns[sort])
    for name, sorts, condition in (
        ("customer_id", ["created_at"], None),
        ("held", every, "held"),
        ("late", every, "late"),
        ("return_status", every, "return_status != 'none'"),
        ("payment_status", every, None),
        ("channel", every, "channel IS NOT NULL"),
        ("fulfillment_status", every, None),
        ("status", every, None),
        ("currency", ["total"], None),
    ):
        leading = [] if name in ("held", "late") else [name]
        where = {} if condition is None else {f"{dialect}_where": sa.text(condition) for dialect in DIALECTS}
        for sort in sorts:
            op.create_index(f"ix_order_search_{name}_{sort}", "order_search", [*leading, *columns[sort]], **where)


def create_compatibility() -> None:
    compatibility = op.create_table(
        "schema_compatibility",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("oldest_code", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schema_compatibility"),
    )
    op.bulk_insert(compatibility, [{"id": 1, "oldest_code": revision}])


def create_partial_unique_index(table: str, *columns: str, not_null: str) -> None:
    name = "_".join(["uq", table, *columns])
    condition = sa.text(f"{not_null} IS NOT NULL")
    op.create_index(name, table, columns, unique=True, postgresql_where=condition, sqlite_where=condition)
