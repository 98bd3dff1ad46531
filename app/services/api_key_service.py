"""API keys, `osk_<id>.<secret><checksum>`: create, list and revoke them, and find their principal."""

import math
import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from zlib import crc32

import structlog
from sqlalchemy import or_, select, update

from app.db.engine import db
from app.db.errors import DATABASE_ERRORS, is_lock_timeout
from app.db.transactions import read_rows
from app.models import ApiKey
from app.models.principal import KEY_ID_LENGTH, Principal

log = structlog.get_logger()

PREFIX = "osk_"
_SECRET_BYTES = 32
_ID_SYMBOLS = "abcdefghijkmnpqrstuvwxyz23456789"
_USE_RECORDED_EVERY = timedelta(minutes=1)
_KEY = re.compile(rf"({PREFIX}([a-z0-9]{{{KEY_ID_LENGTH}}})\.([A-Za-z0-9_-]{{43}}))([0-9a-f]{{8}})", re.ASCII)
_NO_HASH = "0" * 64


def create_api_key(
    name: str, *, scopes: list[str], expires_in: timedelta | None, channels: Collection[str] = ()
) -> str:
    """Store a new key and return it. The secret is stored as a hash only, and cannot be shown again.

    A key with `channels`, at most CHANNELS_MAX, has access to their orders only; without, to all orders.

    SHA-256 is enough: a secret of 256 random bits cannot be guessed, so a slow hash adds nothing.
    """
    key_id = "".join(secrets.choice(_ID_SYMBOLS) for _ in range(KEY_ID_LENGTH))
    secret, now = secrets.token_urlsafe(_SECRET_BYTES), datetime.now(UTC)
    expires_at = None if expires_in is None else now + expires_in
    with db.session.begin():
        db.session.add(
            ApiKey(
                id=key_id,
                name=name,
                scopes=sorted(scopes),
                channels=sorted(channels) or None,
                secret_hash=hash_secret(secret),
                created_at=now,
                expires_at=expires_at,
            )
        )
    return with_checksum(f"{PREFIX}{key_id}.{secret}")


def with_checksum(key: str) -> str:
    """The key with its CRC-32, by which mistyped and truncated keys are refused without a database query.

    It does not protect against forged keys; the secret does.
    """
    return f"{key}{crc32(key.encode()):08x}"


def key_id(key: str) -> str:
    """The id of a well-formed key, which is not secret."""
    return key.removeprefix(PREFIX).partition(".")[0]


def is_well_formed(key: str) -> bool:
    """Whether a key has the right form and checksum. Other keys do not exist."""
    parts = _KEY.fullmatch(key)
    return parts is not None and with_checksum(parts[1]) == key


def any_api_key() -> bool:
    """Whether there is a valid key: neither revoked nor expired."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > datetime.now(UTC))
    return bool(read_rows(select(ApiKey.id).where(ApiKey.revoked_at.is_(None), unexpired).limit(1)))


def list_api_keys() -> list[ApiKey]:
    """All keys, oldest first, including expired and revoked ones."""
    return list(db.session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


def revoke_api_key(key_id: str) -> bool:
    """Revoke a key. False if there is no such key or it is revoked already."""
    valid = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    with db.engine.begin() as connection:
        return connection.execute(valid.values(revoked_at=datetime.now(UTC))).rowcount == 1


def find_principal(key: str) -> tuple[Principal, float] | None:
    """The principal of a key, and its expiry in seconds since 1970. None for a key that is unknown, wrong, expired or
    revoked.

    Use is recorded at most once a minute, so that reads rarely write.
    """
    parts = _KEY.fullmatch(key)
    if parts is None or not is_well_formed(key):
        return None
    key_id, secret = parts[2], parts[3]
    now = datetime.now(UTC)
    row = next(iter(read_rows(select(ApiKey.__table__).where(ApiKey.id == key_id))), None)
    # An unknown id takes as long as a wrong secret, so that timing does not reveal ids.
    matches = compare_digest(hash_secret(secret), row.secret_hash if row else _NO_HASH)
    if row is None or not matches or row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= now:
        return None
    if row.last_used_at is None or row.last_used_at <= now - _USE_RECORDED_EVERY:
        _record_use(row.id, now)
    end = math.inf if row.expires_at is None else row.expires_at.timestamp()
    channels = None if row.channels is None else frozenset(row.channels)
    return Principal(f"service:{row.name}", frozenset(row.scopes), channels=channels), end


def _record_use(key_id: str, now: datetime) -> None:
    """Record the use of a key, unless another process has locked the row (PostgreSQL) or the database (SQLite)."""
    due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - _USE_RECORDED_EVERY)
    free = select(ApiKey.id).where(ApiKey.id == key_id, due).with_for_update(skip_locked=True)
    try:
        with db.engine.execution_options(lock_timeout=0).begin() as connection:
            connection.execute(update(ApiKey).where(ApiKey.id.in_(free)).values(last_used_at=now))
    except DATABASE_ERRORS as error:  # a full disk or a busy database must not make reads fail
        if not is_lock_timeout(error):
            log.warning("use of a key not recorded", key_id=key_id, error=type(error).__name__)


def hash_secret(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
