"""JWT bearer tokens (RFC 7519, RFC 8725): who they name, if they are to be believed."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from jwt.types import Options

from app.errors import ServiceUnavailable
from app.models.order_item import ID_MAX
from app.models.principal import SCOPES, Principal, customer_principal_id

ALGORITHMS = ("RS256", "ES256", "EdDSA")  # asymmetric only: whoever can check a token must not be able to make one
_TYPES = (None, "JWT", "at+jwt", "application/at+jwt")
_LEEWAY = 10  # seconds that clocks may differ
_JWKS_LIFETIME = 300.0  # seconds a key set is used without asking again
_JWKS_PAUSE = 30.0  # seconds between two fetches, however many unknown keys are named
_JWKS_TIMEOUT = 3  # seconds


class InvalidToken(Exception):
    """The token is not to be believed; the message says why, for the log."""


@dataclass
class KeySet:
    """The issuer's keys from its JWKS URL, fetched again now and then, and when an unknown key is named."""

    url: str
    _keys: dict[str | None, Any] = field(default_factory=dict)
    _fetched: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, key_id: str | None) -> Any:
        """The key of that id, or None. Raises ServiceUnavailable where no key set was ever had."""
        with self._lock:  # one fetch for all that wait
            age = time.monotonic() - self._fetched
            if age > _JWKS_LIFETIME or (key_id not in self._keys and age > _JWKS_PAUSE):
                self._fetch()
            return self._keys.get(key_id)

    def _fetch(self) -> None:
        self._fetched = time.monotonic()
        try:
            found = jwt.PyJWKClient(self.url, cache_jwk_set=False, timeout=_JWKS_TIMEOUT).get_jwk_set()
        except jwt.PyJWTError as error:
            if not self._keys:
                self._fetched = float("-inf")
                raise ServiceUnavailable("The keys to check tokens with cannot be had just now.") from error
            return  # an issuer that is away for a moment does not lock everybody out
        self._keys = {key.key_id: key.key for key in found.keys if key.public_key_use in (None, "sig")}


@dataclass(frozen=True)
class TokenChecker:
    """Checks tokens of one issuer for one audience, by a public key (PEM) or by the issuer's key set."""

    issuer: str
    audience: str
    public_key: str | None = None
    key_set: KeySet | None = None

    def check(self, token: str) -> tuple[Principal, float]:
        """The principal a token names, and when the token ends (seconds since 1970). Raises InvalidToken.

        The header is used to choose among known keys and for nothing else: `jku`, `x5u` and `jwk` are never followed.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") not in _TYPES:
                raise InvalidToken("its type is not JWT")
            key = self.key_set.find(header.get("kid")) if self.key_set else self.public_key
            if key is None:
                raise InvalidToken("its key is not known")
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
        except (jwt.PyJWTError, ValueError, TypeError, UnicodeError) as error:
            raise InvalidToken(str(error)) from error
        return _principal(claims), float(claims["exp"])


def _principal(claims: Mapping[str, Any]) -> Principal:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= ID_MAX or not subject.isprintable():
        raise InvalidToken("its subject cannot be a customer's id")
    said = claims.get("scope", "")
    scopes = frozenset(said.split() if isinstance(said, str) else ()) & SCOPES.keys()
    if "orders:manage" in scopes:
        return Principal(f"token:{subject}", scopes)
    return Principal(customer_principal_id(subject), scopes, customer_id=subject)
