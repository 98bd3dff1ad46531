"""Fulfillments and returns."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

UUID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIMESTAMP = sa.DateTime(timezone=True).with_variant(sa.String(27), "sqlite")


def upgrade() -> None:
    for table, own in (("fulfillments", sa.Column("tracking", sa.JSON)), ("returns", sa.Column("reason", sa.Text))):
        op.create_table(
            table,
            sa.Column("order_id", UUID, nullable=False),
            sa.Column("number", sa.Integer, nullable=False),
            sa.Column("items", sa.JSON, nullable=False),
            own,
            sa.Column("created_at", TIMESTAMP, nullable=False),
            sa.PrimaryKeyConstraint("order_id", "number", name=f"pk_{table}"),
        )


def downgrade() -> None:
    op.drop_table("returns")
    op.drop_table("fulfillments")
