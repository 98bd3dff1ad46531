"""API keys, JWT bearer tokens, and the principals they name; then the secrets that sign webhooks.

An API key is `osk_<id>.<secret><checksum>`. Tokens: RFC 7519, RFC 8725. Secrets and signatures of webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import math
import re
import secrets
import threading
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Any
from urllib.error import HTTPError, URLError
from zlib import crc32

import gevent
import jwt
import structlog
from cryptography import fernet
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.types import Options
from sqlalchemy import or_, select, update

from app.config import RANDOM_KEY_PREFIX
from app.db.engine import DATABASE_ERRORS, db, is_lock_timeout
from app.db.statements import read_rows
from app.errors import ServiceUnavailable
from app.models import ApiKey
from app.models.order import ID_MAX
from app.models.order_id import is_alias
from app.models.principal import CUSTOMER_SCOPES, KEY_ID_LENGTH, SCOPES, Principal, customer_principal_id

log = structlog.get_logger()

API_KEY_PREFIX = "osk_"
_API_KEY_SECRET_BYTES = 32
_KEY_ID_SYMBOLS = "abcdefghijkmnpqrstuvwxyz23456789"
_USE_RECORDED_EVERY = timedelta(minutes=1)
_API_KEY = re.compile(
    rf"({API_KEY_PREFIX}([a-z0-9]{{{KEY_ID_LENGTH}}})\.([A-Za-z0-9_-]{{43}}))([0-9a-f]{{8}})", re.ASCII
)
_NO_HASH = "0" * 64

ALGORITHMS = ("RS256", "ES256", "EdDSA")  # asymmetric: the service verifies tokens, and must not be able to sign them
# Media types in lower case (RFC 7515 §4.1.9, RFC 9068 §2.1); "application/" may be left out.
_TOKEN_TYPES = ("jwt", "application/jwt", "at+jwt", "application/at+jwt")
_USER_AGENT = "order-service"
_LOGGABLE_ERRORS = (
    jwt.ExpiredSignatureError,
    jwt.ImmatureSignatureError,
    jwt.InvalidAudienceError,
    jwt.InvalidIssuerError,
    jwt.InvalidSignatureError,
    jwt.MissingRequiredClaimError,
)
_TOKEN_LEEWAY = 10  # seconds of clock skew
_JWKS_LIFETIME = 300.0  # seconds that a key set is cached
_JWKS_PAUSE = 30.0  # seconds between two fetches for unknown key ids
_JWKS_FIRST_PAUSE = 2.0  # the same before the first key set, so that requests do not queue for the timeout
_JWKS_TIMEOUT = 3  # seconds
# Requests that wait for a fetch: anybody can send tokens with unknown key ids, and each occupies a part of the
# requests that a worker processes at the same time.
_JWKS_WAITING = 10
_RSA_MIN = 2048  # bits (NIST SP 800-131A)
_PUBLIC_KEYS = (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey)

_WEBHOOK_SECRET_PREFIX = "whsec_"  # the prefix that the specification gives every secret  # nosec B105
_WEBHOOK_SECRET_BYTES = 32  # the specification: 24 to 64
_PLAIN, _ENCRYPTED = "plain:", "fernet:"


def create_api_key(
    name: str, *, scopes: list[str], expires_in: timedelta | None, channels: Collection[str] = ()
) -> str:
    """Store a new key and return it. The secret is stored as a hash only, and cannot be shown again.

    A key with `channels`, at most CHANNELS_MAX, has access to their orders only; without, to all orders.

    SHA-256 is enough: a secret of 256 random bits cannot be guessed, so a slow hash adds nothing.
    """
    key_id = "".join(secrets.choice(_KEY_ID_SYMBOLS) for _ in range(KEY_ID_LENGTH))
    secret, now = secrets.token_urlsafe(_API_KEY_SECRET_BYTES), datetime.now(UTC)
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
    return with_checksum(f"{API_KEY_PREFIX}{key_id}.{secret}")


def find_principal(key: str) -> tuple[Principal, float] | None:
    """The principal of a key, and its expiry in seconds since 1970. None for a key that is unknown, wrong, expired or
    revoked.

    Use is recorded at most once a minute, so that reads rarely write.
    """
    parts = _API_KEY.fullmatch(key)
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


def list_api_keys() -> list[ApiKey]:
    """All keys, oldest first, including expired and revoked ones."""
    return list(db.session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


def revoke_api_key(key_id: str) -> bool:
    """Revoke a key. False if there is no such key or it is revoked already."""
    valid = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    with db.engine.begin() as connection:
        return connection.execute(valid.values(revoked_at=datetime.now(UTC))).rowcount == 1


def any_api_key() -> bool:
    """Whether there is a valid key: neither revoked nor expired."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > datetime.now(UTC))
    return bool(read_rows(select(ApiKey.id).where(ApiKey.revoked_at.is_(None), unexpired).limit(1)))


def key_id(key: str) -> str:
    """The id of a well-formed key, which is not secret."""
    return key.removeprefix(API_KEY_PREFIX).partition(".")[0]


def is_well_formed(key: str) -> bool:
    """Whether a key has the right form and checksum. Other keys do not exist."""
    parts = _API_KEY.fullmatch(key)
    return parts is not None and with_checksum(parts[1]) == key


def with_checksum(key: str) -> str:
    """The key with its CRC-32, by which mistyped and truncated keys are refused without a database query.

    It does not protect against forged keys; the secret does.
    """
    return f"{key}{crc32(key.encode()):08x}"


def hash_secret(secret: str) -> str:
    """The hash of an API key's secret, as it is stored."""
    return sha256(secret.encode()).hexdigest()


class InvalidToken(Exception):
    """The token is not valid. The message is the reason, for the log."""


class KeySetUnavailable(Exception):
    """The key set could not be fetched. The message is the reason."""


@dataclass
class KeySet:
    """The issuer's keys, fetched from its JWKS URL when the cache expires or a token has an unknown key id."""

    url: str
    _keys: dict[str | None, Any] = field(default_factory=dict)
    _fetched: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: threading.Semaphore = field(default_factory=partial(threading.Semaphore, _JWKS_WAITING))

    def find(self, key_id: str | None) -> Any:
        """The key with this id, or None.

        Raises ServiceUnavailable if no key set could ever be fetched, or _JWKS_WAITING requests wait for one.
        """
        if self._get(key_id) is None:
            if not self._waiting.acquire(blocking=False):
                raise ServiceUnavailable("Token signing keys are being fetched. Send the request again.")
            try:
                self._refresh(key_id, wait=True)
            finally:
                self._waiting.release()
        else:
            self._refresh(key_id, wait=False)
        if not self._keys:
            raise ServiceUnavailable("Token signing keys are temporarily unavailable. Send the request again.")
        return self._get(key_id)

    def _refresh(self, key_id: str | None, *, wait: bool) -> None:
        """Fetch the key set if it is time: once for all requests that wait for it."""
        if self._lock.acquire(blocking=wait):
            try:
                if self._is_due(key_id):
                    self._fetch()
            finally:
                self._lock.release()

    def _get(self, key_id: str | None) -> Any:
        """The key with this id. Without an id, the only key of the set, if it has one key."""
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _is_due(self, key_id: str | None) -> bool:
        age = time.monotonic() - self._fetched
        pause = _JWKS_PAUSE if self._keys else _JWKS_FIRST_PAUSE
        return age > _JWKS_LIFETIME or (self._get(key_id) is None and age > pause)

    def _fetch(self) -> None:
        try:
            self._keys = fetch_keys(self.url)
        except KeySetUnavailable as error:  # the cached keys are kept
            log.warning("token signing keys unavailable", error=type(error.__cause__).__name__, reason=str(error))
        finally:
            self._fetched = time.monotonic()


def fetch_keys(url: str) -> dict[str | None, Any]:
    """The public keys of a key set by their ids. Raises KeySetUnavailable.

    Private keys and shared secrets are ignored: if they are published, anybody can sign.
    """
    headers = {"User-Agent": _USER_AGENT, "Accept": "application/jwk-set+json, application/json"}
    client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_JWKS_TIMEOUT, headers=headers)
    try:
        # urllib's limit is for each step. In gunicorn's workers, this one is for all, name resolution included.
        with gevent.Timeout(_JWKS_TIMEOUT, TimeoutError):
            key_set = client.get_jwk_set()
        signing = (key for key in key_set.keys if key.public_key_use in (None, "sig"))
        return {key.key_id: key.key for key in signing if isinstance(key.key, _PUBLIC_KEYS)}
    except Exception as error:
        raise KeySetUnavailable(_fetch_failure(error)) from error


def _fetch_failure(error: Exception) -> str:
    """Why a key set could not be fetched, without its URL, which may contain credentials."""
    cause = error.__cause__ if isinstance(error, jwt.PyJWKClientConnectionError) else error
    if isinstance(cause, HTTPError):
        return f"HTTP status {cause.code}"
    reason = cause.reason if isinstance(cause, URLError) else cause
    if isinstance(reason, TimeoutError):
        return f"no response within {_JWKS_TIMEOUT} seconds"
    if isinstance(reason, OSError):  # TLS, DNS, a refused or broken connection
        return str(reason)
    if isinstance(error, (jwt.PyJWTError, ValueError, RecursionError)) and reason is error:
        return "the response is not a JSON Web Key Set with usable keys"
    return type(cause).__name__


def read_public_key(pem: str) -> Any:
    """Parse a public key in PEM. Raises ValueError unless it is RSA of at least 2,048 bits, P-256 or Ed25519."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a public key in PEM: -----BEGIN PUBLIC KEY----- …") from None
    strong_rsa = isinstance(key, RSAPublicKey) and key.key_size >= _RSA_MIN
    p256 = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    if not (strong_rsa or p256 or isinstance(key, Ed25519PublicKey)):
        raise ValueError(f"an RSA key of {_RSA_MIN} bits or more, a P-256 or an Ed25519 key")
    return key


@dataclass(frozen=True)
class TokenChecker:
    """Verifies tokens of one issuer for one audience with a public key or a key set."""

    issuer: str
    audience: str
    public_key: Any = None
    key_set: KeySet | None = None

    def check(self, token: str) -> tuple[Principal, float]:
        """The principal of a token, and its expiry in seconds since 1970. Raises InvalidToken.

        The header only selects one of the known keys: `jku`, `x5u` and `jwk` are ignored.
        """
        try:
            header = jwt.get_unverified_header(token)
            kind = header.get("typ", "JWT")
            if kind is not None and str(kind).lower() not in _TOKEN_TYPES:
                raise InvalidToken("typ is not JWT")
            key = self.key_set.find(header.get("kid")) if self.key_set else self.public_key
            if key is None:
                raise InvalidToken("unknown signing key")
            options: Options = {"require": ["exp", "sub", "iss", "aud"], "enforce_minimum_key_length": True}
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self.issuer,
                audience=self.audience,
                leeway=_TOKEN_LEEWAY,
                options=options,
            )
            return _token_principal(claims), float(claims["exp"])
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError) as error:
            raise InvalidToken(_invalid_reason(error)) from error


def _invalid_reason(error: Exception) -> str:
    """The reason for the log. Messages of other errors than _LOGGABLE_ERRORS quote the token."""
    return str(error) if isinstance(error, _LOGGABLE_ERRORS) else type(error).__name__


def _token_principal(claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= ID_MAX or not subject.isprintable():
        raise InvalidToken("sub is not a valid customer id")
    scopes = (_token_scopes(claims.get("scope")) | _token_scopes(claims.get("scp"))) & SCOPES.keys()
    if "orders:manage" in scopes:
        return Principal(f"token:{subject}", scopes)
    if is_alias(subject):  # of a customer whose data was erased
        raise InvalidToken("sub is not a valid customer id")
    return Principal(customer_principal_id(subject), scopes & CUSTOMER_SCOPES, customer_id=subject)


def _token_scopes(claim: Any) -> frozenset[str]:
    """The scopes of a `scope` or `scp` claim: words in a string (RFC 8693 §4.2), or a list, as some issuers send it.

    Only a space separates them (RFC 6749 §3.3): to the issuer, words with a tab in between are one scope.
    """
    if isinstance(claim, str):
        return frozenset(claim.split(" "))
    return frozenset(scope for scope in claim if isinstance(scope, str)) if isinstance(claim, list) else frozenset()


class UnreadableSecret(Exception):
    """The secret of a webhook was encrypted with another SECRET_KEY. It must be rotated."""


def new_webhook_secret() -> str:
    """A random secret, `whsec_` and base64."""
    return _WEBHOOK_SECRET_PREFIX + b64encode(secrets.token_bytes(_WEBHOOK_SECRET_BYTES)).decode()


def signed_headers(message_id: str, body: bytes, *, timestamp: int, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a request, with one signature for each secret. `timestamp` is in seconds since 1970."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_webhook_signature(content, secret) for secret in secrets),
    }


def _webhook_signature(content: bytes, secret: str) -> str:
    key = b64decode(secret.removeprefix(_WEBHOOK_SECRET_PREFIX))
    return "v1," + b64encode(hmac.digest(key, content, "sha256")).decode()


class SecretStore:
    """Seals the secrets of webhooks for the database and opens them again.

    With a SECRET_KEY they are encrypted and authenticated with a key derived from it: a copy of the database alone
    reveals none. Anyone who also has the settings of the service, or runs code in it, can read them all. Without a
    SECRET_KEY they are stored in plain text, and anyone who can read the database can sign.
    """

    def __init__(self, secret_key: str) -> None:
        self._fernet: fernet.Fernet | None = None
        if not secret_key.startswith(RANDOM_KEY_PREFIX):
            key = blake2b(secret_key.encode(), digest_size=32, person=b"webhook secrets").digest()
            self._fernet = fernet.Fernet(urlsafe_b64encode(key))

    def seal(self, secret: str) -> str:
        """The text to store."""
        if self._fernet is None:
            return _PLAIN + secret
        return _ENCRYPTED + self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret in a stored text. Raises UnreadableSecret."""
        if sealed.startswith(_PLAIN):
            return sealed.removeprefix(_PLAIN)
        if self._fernet is None:
            raise UnreadableSecret
        try:
            return self._fernet.decrypt(sealed.removeprefix(_ENCRYPTED)).decode()
        except fernet.InvalidToken:
            raise UnreadableSecret from None
