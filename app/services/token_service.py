"""JWT bearer tokens (RFC 7519, RFC 8725): verification, and the principal they name."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError

import gevent
import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.types import Options

from app.errors import ServiceUnavailable
from app.models.order_id import is_alias
from app.models.order_item import ID_MAX
from app.models.principal import CUSTOMER_SCOPES, SCOPES, Principal, customer_principal_id

log = structlog.get_logger()

ALGORITHMS = ("RS256", "ES256", "EdDSA")  # asymmetric: the service verifies tokens, and must not be able to sign them
# Media types in lower case (RFC 7515 §4.1.9, RFC 9068 §2.1); "application/" may be left out.
_TYPES = ("jwt", "application/jwt", "at+jwt", "application/at+jwt")
_USER_AGENT = "order-service"
_LOGGABLE = (
    jwt.ExpiredSignatureError,
    jwt.ImmatureSignatureError,
    jwt.InvalidAudienceError,
    jwt.InvalidIssuerError,
    jwt.InvalidSignatureError,
    jwt.MissingRequiredClaimError,
)
_LEEWAY = 10  # seconds of clock skew
_JWKS_LIFETIME = 300.0  # seconds that a key set is cached
_JWKS_PAUSE = 30.0  # seconds between two fetches for unknown key ids
_JWKS_FIRST_PAUSE = 2.0  # the same before the first key set, so that requests do not queue for the timeout
_JWKS_TIMEOUT = 3  # seconds
# Requests that wait for a fetch: anybody can send tokens with unknown key ids, and each occupies a part of the
# requests that a worker processes at the same time.
_JWKS_WAITING = 10
_RSA_MIN = 2048  # bits (NIST SP 800-131A)
_PUBLIC_KEYS = (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey)


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
            if kind is not None and str(kind).lower() not in _TYPES:
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
                leeway=_LEEWAY,
                options=options,
            )
            return _principal(claims), float(claims["exp"])
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError) as error:
            raise InvalidToken(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The reason for the log. Messages of other errors than _LOGGABLE quote the token."""
    return str(error) if isinstance(error, _LOGGABLE) else type(error).__name__


def _principal(claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= ID_MAX or not subject.isprintable():
        raise InvalidToken("sub is not a valid customer id")
    scopes = (_scopes(claims.get("scope")) | _scopes(claims.get("scp"))) & SCOPES.keys()
    if "orders:manage" in scopes:
        return Principal(f"token:{subject}", scopes)
    if is_alias(subject):  # of a customer whose data was erased
        raise InvalidToken("sub is not a valid customer id")
    return Principal(customer_principal_id(subject), scopes & CUSTOMER_SCOPES, customer_id=subject)


def _scopes(claim: Any) -> frozenset[str]:
    """The scopes of a `scope` or `scp` claim: words in a string (RFC 8693 §4.2), or a list, as some issuers send it.

    Only a space separates them (RFC 6749 §3.3): to the issuer, words with a tab in between are one scope.
    """
    if isinstance(claim, str):
        return frozenset(claim.split(" "))
    return frozenset(scope for scope in claim if isinstance(scope, str)) if isinstance(claim, list) else frozenset()
