"""API keys of the services that call this one."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import Base
from app.db.types import JSON_VALUE, Timestamp

NAME_MAX = 64
KEY_ID_LENGTH = 16
CHANNELS_MAX = 20  # of one key; a list of its orders merges four ranges of an index for each


class ApiKey(Base):
    """An API key, stored as its id and a hash of its secret.

    Keys with the same name belong to the same principal, so that a key can be rotated. A key that is bound to channels
    has access to their orders only; `channels` is None for access to all orders, also to those without a channel.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(KEY_ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_MAX))
    scopes: Mapped[list[str]] = mapped_column(JSON_VALUE)
    channels: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)
