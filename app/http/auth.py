"""Readiness, authentication and scopes of every request, and the request's principal."""

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, TypeVar

import structlog
from flask import Flask, current_app

from app.config import StartupError, is_loopback
from app.db.engine import DATABASE_ERRORS, UNUSABLE_FILE, is_file_unusable, is_unavailable
from app.db.migrations import SchemaMismatch, require_revision
from app.errors import Forbidden, ServiceUnavailable, Unauthenticated
from app.http import rate_limit
from app.http.application import PUBLIC, Blueprint
from app.http.rate_limit import Slots
from app.http.requests import current_globals, current_request, is_origin_allowed
from app.models.principal import ANONYMOUS, SCOPES, Principal, customer_principal_id
from app.services.credentials import (
    API_KEY_PREFIX,
    InvalidToken,
    KeySet,
    TokenChecker,
    any_api_key,
    find_principal,
    is_well_formed,
    read_public_key,
)

log = structlog.get_logger()

Value = TypeVar("Value")

KEY_SECONDS = 1.0  # seconds that a valid API key is cached: a revoked key is refused within a second
_TOKEN_SECONDS = 60.0  # seconds that a valid token is cached, never beyond its expiry
_REFUSED_SECONDS = 60.0  # seconds that an invalid API key is cached, so that it costs no database query
_CACHE_SIZE = 10_000  # credentials
_CREDENTIAL_MAX = 4_096  # characters: longer than any issuer's tokens, shorter than the server's limit for a header
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "", None)  # empty or None: a Unix socket
_HOST = re.compile(r"(?:(?P<name>[a-z0-9.-]+)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::\d*)?")  # RFC 9110 §7.2


def init_app(app: Flask) -> None:
    """Authorize each request before its view. Raises StartupError for a route without a scope."""
    app.extensions["authorization"] = authorization = Authorization(app)
    app.before_request(authorization.authorize)


class Authorization:
    """Checks each request before its view: readiness, credentials, rate limits and scope, in this order.

    `database_checked` is False from a start without a database until the first request that reaches it.
    """

    def __init__(self, app: Flask) -> None:
        self.database_checked = True
        self.authenticator = Authenticator(app)
        self._is_rate_limited = "rate_limiter" in app.extensions
        self._request_slots: Slots | None = app.extensions.get("request_slots")
        self._scopes = {endpoint: declared_scope(app, endpoint) for endpoint in app.view_functions}
        for endpoint, scope in self._scopes.items():
            if scope not in {*SCOPES, PUBLIC}:
                raise StartupError(f"The route {endpoint} has no scope. Declare one, or PUBLIC.")

    def authorize(self) -> None:
        """Set `g.principal`. Raises Unauthenticated, Forbidden, TooManyRequests and ServiceUnavailable."""
        request = current_request()
        if request.url_rule is None or request.method == "OPTIONS":
            return  # 404, 405 and OPTIONS reveal nothing that the API description does not
        scope = self._scopes.get(request.url_rule.endpoint)
        if scope == PUBLIC:
            return
        if not self.database_checked:  # before authentication, which reads the database
            self._check_database()
        current_globals().principal = principal = self.authenticator.authenticate()
        if self._is_rate_limited:  # before the scope: requests without it count, too
            rate_limit.count(principal)
        if self._request_slots is not None:
            rate_limit.enter(self._request_slots, principal)
        if scope not in principal.scopes:
            challenge = f'Bearer realm="orders", error="insufficient_scope", scope="{scope}"'
            raise Forbidden(f"The scope {scope} is missing.").with_headers(WWW_Authenticate=challenge)

    def _check_database(self) -> None:
        """Raise the database's error, or ServiceUnavailable if this code does not work with its schema."""
        try:
            require_revision()
        except SchemaMismatch as error:
            raise ServiceUnavailable(str(error)) from None
        try:
            require_credentials()
        except StartupError as error:  # the response is 401
            log.error(str(error))
        self.database_checked = True


def declared_scope(app: Flask, endpoint: str) -> str | None:
    """Return the scope that an endpoint's route declares, or None."""
    blueprint, _, view = endpoint.rpartition(".")
    routes = app.blueprints.get(blueprint)
    return routes.operations[view].scope if isinstance(routes, Blueprint) and view in routes.operations else None


def check_before_serving(app: Flask) -> None:
    """Check the database's schema and that credentials exist, before the first request.

    If the database is temporarily unavailable, the first request that reaches it repeats the check. Raises StartupError
    for what a restart cannot fix.
    """
    try:
        require_revision()
        require_credentials()
    except StartupError:  # UnsuitableDatabase is also one of DATABASE_ERRORS
        raise
    except DATABASE_ERRORS as error:
        reason = str(error).partition("\n")[0]
        if is_file_unusable(error):
            raise StartupError(UNUSABLE_FILE) from None
        if not is_unavailable(error):
            raise StartupError(f"The database cannot be used: {reason}") from None
        app.extensions["authorization"].database_checked = False
        log.warning("started without a database", error=type(error).__name__, reason=reason)


def require_credentials() -> None:
    """Raise StartupError if no credentials could be valid; log a warning if none are required."""
    if current_app.config["AUTH"] == "off":
        clients = "every client that can reach it" if current_app.config["AUTH_ALLOW_OPEN"] else "this machine only"
        log.warning("authentication is off", open_to=clients)
    elif not current_app.extensions["authorization"].authenticator.has_credentials():
        raise StartupError(
            "AUTH is required and there is no API key: run `flask api-keys create --name shop --scope orders:write "
            "--scope orders:read`, or set JWT_JWKS_URL or JWT_PUBLIC_KEY."
        )


@dataclass
class ExpiringCache(Generic[Value]):
    """Results of checked credentials, each until its expiry. Beyond _CACHE_SIZE the oldest is evicted."""

    _entries: OrderedDict[str, tuple[float, Value]] = field(default_factory=OrderedDict)

    def find(self, credential: str) -> Value | None:
        """Return the cached result, or None if there is none or it has expired."""
        entry = self._entries.get(credential)
        return entry[1] if entry is not None and time.monotonic() < entry[0] else None

    def add(self, credential: str, value: Value, *, seconds: float) -> None:
        """Cache a result for `seconds`."""
        self._entries[credential] = (time.monotonic() + seconds, value)
        self._entries.move_to_end(credential)
        if len(self._entries) > _CACHE_SIZE:
            self._entries.popitem(last=False)


class Authenticator:
    """Authenticates requests by their bearer credentials: API keys and tokens (RFC 6750)."""

    def __init__(self, app: Flask) -> None:
        self._required = app.config["AUTH"] == "required"
        self._open_to_all = app.config["AUTH_ALLOW_OPEN"]
        self._principals: ExpiringCache[Principal] = ExpiringCache()
        self._invalid_keys: ExpiringCache[bool] = ExpiringCache()
        self._checker: TokenChecker | None = None
        url, public_key = app.config["JWT_JWKS_URL"], app.config["JWT_PUBLIC_KEY"]
        if url or public_key:
            self._checker = TokenChecker(
                app.config["JWT_ISSUER"],
                app.config["JWT_AUDIENCE"],
                public_key=_read_public_key(public_key) if public_key else None,
                key_set=KeySet(url) if url else None,
            )

    def authenticate(self) -> Principal:
        """Return the request's principal. Raises Unauthenticated, or Forbidden for a remote client without AUTH."""
        if not self._required:
            if not self._open_to_all and not _is_from_this_machine():
                raise Forbidden(
                    "The service runs with AUTH=off and accepts requests from its own machine only, and from pages of "
                    "websites only if they are there or in CORS_ORIGINS."
                )
            return ANONYMOUS
        scheme, _, credential = current_request().headers.get("Authorization", "").partition(" ")
        credential = credential.lstrip(" ")  # RFC 9110 §11.4: one space or more
        if scheme.lower() != "bearer":  # RFC 6750 §3.1: without credentials, the challenge has no error code
            raise _unauthenticated("no bearer credentials", error=None)
        if not 1 <= len(credential) <= _CREDENTIAL_MAX:
            raise _unauthenticated("the credentials are empty or too long")
        return self._principals.find(credential) or self._check(credential)

    def has_credentials(self) -> bool:
        """Return whether any credentials could be valid."""
        return self._checker is not None or any_api_key()

    def _check(self, credential: str) -> Principal:
        if credential.startswith(API_KEY_PREFIX):
            (principal, expires_at), seconds = self._check_key(credential), KEY_SECONDS
        elif self._checker is None:
            raise _unauthenticated("tokens are not configured")
        else:
            try:
                (principal, expires_at), seconds = self._checker.check(credential), _TOKEN_SECONDS
            except InvalidToken as error:
                raise _unauthenticated(f"the token is not valid: {error}") from None
        self._principals.add(credential, principal, seconds=min(seconds, expires_at - time.time()))
        return principal

    def _check_key(self, key: str) -> tuple[Principal, float]:
        """Return an API key's principal and expiry. Raises Unauthenticated.

        Invalid keys are cached: no key is used before it has been created, and an expired one never becomes valid.
        """
        valid = None if self._invalid_keys.find(key) else find_principal(key)
        if valid is None:
            if is_well_formed(key):  # others need no query, and would evict these
                self._invalid_keys.add(key, True, seconds=_REFUSED_SECONDS)
            raise _unauthenticated("the key is unknown, wrong, expired or revoked")
        return valid


def _unauthenticated(reason: str, *, error: str | None = "invalid_token") -> Unauthenticated:
    """Return the error to raise. The reason is only logged: in the response it would help an attacker."""
    challenge = 'Bearer realm="orders"' + (f', error="{error}"' if error else "")
    unauthenticated = Unauthenticated("Send a valid API key or token as a bearer token in the Authorization header.")
    unauthenticated.reason = reason
    return unauthenticated.with_headers(WWW_Authenticate=challenge)


def _is_from_this_machine() -> bool:
    """Return whether the peer, every client in X-Forwarded-For, the Host and the Origin are this machine.

    The last two are checked against pages of other sites in a browser here. Their host names can resolve to a loopback
    address (DNS rebinding), and a form needs no preflight request for an action without a body.
    """
    environ = current_request().environ  # the request's properties would cost a microsecond each
    forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
    return (
        environ.get("REMOTE_ADDR") in _LOOPBACK
        and (forwarded_for in _LOOPBACK or all(address.strip() in _LOOPBACK for address in forwarded_for.split(",")))
        and _is_local_host(environ.get("HTTP_HOST", "localhost"))  # browsers always send it
        and ("HTTP_ORIGIN" not in environ or _is_local_origin(environ["HTTP_ORIGIN"]) or is_origin_allowed())
    )


def _is_local_origin(origin: str) -> bool:
    """Return whether an Origin header is a site on this machine. It is "null" for a page in a sandbox."""
    return _is_local_host(origin.partition("://")[2])


@lru_cache(maxsize=64)
def _is_local_host(host: str) -> bool:
    """Return whether a host is "localhost" or a loopback address, in any spelling, with any port."""
    match = _HOST.fullmatch(host.lower())
    if not match:
        return False
    name = match["ipv6"] or match["name"].removesuffix(".")  # "localhost." is the absolute form of the same name
    return name == "localhost" or is_loopback(name)


def _read_public_key(pem: str) -> object:
    try:
        return read_public_key(pem)
    except ValueError as error:
        raise StartupError(f"JWT_PUBLIC_KEY must be {error}.") from None


def current_principal() -> Principal:
    """Return the request's principal, which has the scope that the route requires."""
    principal: Principal = current_globals().principal
    return principal


def require_unchanged(principal: Principal) -> None:
    """Raise Unauthenticated or Forbidden if the request's credentials no longer stand for the principal.

    A response that takes long calls it between its parts. While the database does not answer, they are taken for valid.
    """
    authenticator: Authenticator = current_app.extensions["authorization"].authenticator
    try:
        if authenticator.authenticate() == principal:
            return
    except DATABASE_ERRORS:
        return
    raise Unauthenticated("The credentials have changed.")


def loggable_id(principal: Principal) -> str:
    """Return the id of a service, which is its API key's name, or a keyed hash of a person's id, for logs.

    A person's hash, 16 hexadecimal digits, stays the same as long as SECRET_KEY does.
    """
    if principal.customer_id is None and not principal.id.startswith("token:"):
        return principal.id
    return _keyed_hash(principal.id)


def loggable_customer(customer_id: str) -> str:
    """Return the hash that `loggable_id` returns for the customer's own requests."""
    return _keyed_hash(customer_principal_id(customer_id))


def _keyed_hash(principal_id: str) -> str:
    key = blake2b(current_app.config["SECRET_KEY"].encode()).digest()
    return blake2b(principal_id.encode(), digest_size=8, key=key, person=b"principal in log").hexdigest()
