"""Authentication and scopes: nobody reaches a view whose declaration does not let them in."""

import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import structlog
from flask import Flask, current_app, g

from app.config import StartupError, is_loopback
from app.db.errors import DATABASE_ERRORS, is_missing_file, is_unavailable
from app.db.revision import SchemaMismatch, require_revision
from app.errors import Forbidden, ServiceUnavailable, Unauthenticated
from app.http import rate_limit
from app.http.application import current_request
from app.http.blueprint import PUBLIC, Blueprint
from app.models.principal import ANONYMOUS, SCOPES, Principal, customer_principal_id
from app.services.api_key_service import PREFIX, any_api_key, find_principal, is_well_formed
from app.services.token_service import InvalidToken, KeySet, TokenChecker, read_public_key

log = structlog.get_logger()

Finding = TypeVar("Finding")

_KEY_SECONDS = 1.0  # for how long a key is taken without asking the database: a revoked one ends within a second
_TOKEN_SECONDS = 60.0  # for how long a token's signature is not checked again; never beyond the token's own end
_REFUSED_SECONDS = 60.0  # for how long a key that is worth nothing is refused without asking the database
_REMEMBERED = 10_000  # credentials
_TOKEN_MAX = 4_096  # characters of a credential: more than any issuer's, and fewer than a header may have
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "", None)  # none: a socket file
_HOST = re.compile(r"(?:(?P<name>[a-z0-9.-]+)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::\d*)?")  # RFC 9110 §7.2


def init_app(app: Flask) -> None:
    """Let nobody in unannounced. Raises StartupError for a route that does not say whom it lets in."""
    scopes = {endpoint: declared_scope(app, endpoint) for endpoint in app.view_functions}
    for endpoint, scope in scopes.items():
        if scope not in {*SCOPES, PUBLIC}:
            raise StartupError(f"The route {endpoint} has no scope. Declare one, or PUBLIC.")
    app.extensions["readiness"] = readiness = Readiness()
    app.before_request(readiness.check)  # before authentication, which reads the database too
    app.extensions["auth"] = authenticator = Authenticator(app)
    app.before_request(lambda: _authorize(authenticator, scopes))


def declared_scope(app: Flask, endpoint: str) -> str | None:
    """The scope that the route of an endpoint requires, PUBLIC, or None where it does not say."""
    blueprint, _, view = endpoint.rpartition(".")
    routes = app.blueprints.get(blueprint)
    return routes.operations[view].scope if isinstance(routes, Blueprint) and view in routes.operations else None


def _authorize(authenticator: "Authenticator", scopes: Mapping[str, Any]) -> None:
    asked = current_request()
    if asked.url_rule is None or asked.method == "OPTIONS":
        return  # 404 and 405 tell nothing that the API description does not
    scope = scopes.get(asked.url_rule.endpoint)
    if scope == PUBLIC:
        return
    g.principal = principal = authenticator.principal()
    rate_limit.count(principal)  # before the scope is looked at: refused requests are requests too
    if scope not in principal.scopes:
        challenge = f'Bearer realm="orders", error="insufficient_scope", scope="{scope}"'
        raise Forbidden(f"The scope {scope} is missing.").with_headers(WWW_Authenticate=challenge)


def require_credentials() -> None:
    """Raise StartupError where nobody could be let in; say so where everybody is."""
    if current_app.config["AUTH"] == "off":
        whom = "everybody who reaches it" if current_app.config["AUTH_ALLOW_OPEN"] else "this machine only"
        log.warning("authentication is off", open_to=whom)
    elif not current_app.extensions["auth"].knows_anybody():
        raise StartupError(
            "AUTH is required and there is no API key: run `flask api-keys create --name shop --scope orders:write "
            "--scope orders:read`, or set JWT_JWKS_URL or JWT_PUBLIC_KEY."
        )


@dataclass
class Memory(Generic[Finding]):
    """What was found about credentials, each until a moment of the monotonic clock; the oldest are forgotten first."""

    _known: OrderedDict[str, tuple[float, Finding]] = field(default_factory=OrderedDict)

    def recall(self, credential: str) -> Finding | None:
        """What is known of the credential without another check."""
        known = self._known.get(credential)
        return known[1] if known is not None and time.monotonic() < known[0] else None

    def remember(self, credential: str, finding: Finding, *, seconds: float) -> None:
        """Check the credential no more for so long."""
        self._known[credential] = (time.monotonic() + seconds, finding)
        self._known.move_to_end(credential)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


class Authenticator:
    """Tells whose request this is, from its bearer credentials."""

    def __init__(self, app: Flask) -> None:
        self._required = app.config["AUTH"] == "required"
        self._open_to_all = app.config["AUTH_ALLOW_OPEN"]
        self._memory: Memory[Principal] = Memory()
        self._refused: Memory[bool] = Memory()
        self._checker: TokenChecker | None = None
        url, public_key = app.config["JWT_JWKS_URL"], app.config["JWT_PUBLIC_KEY"]
        if url or public_key:
            self._checker = TokenChecker(
                app.config["JWT_ISSUER"],
                app.config["JWT_AUDIENCE"],
                public_key=_read_public_key(public_key) if public_key else None,
                key_set=KeySet(url) if url else None,
            )

    def principal(self) -> Principal:
        """Whose request this is. Raises Unauthenticated, and Forbidden for strangers at an open service."""
        if not self._required:
            if not self._open_to_all and not _from_this_machine():
                raise Forbidden("The service runs with AUTH=off and accepts requests from its own machine only.")
            return ANONYMOUS
        scheme, _, credential = current_request().headers.get("Authorization", "").partition(" ")
        credential = credential.lstrip(" ")  # RFC 9110 §11.4: one space or more
        if scheme.lower() != "bearer":  # RFC 6750 §3.1: no error code for who did not know what to send
            raise self._denied("no bearer credentials", error=None)
        if not 1 <= len(credential) <= _TOKEN_MAX:
            raise self._denied("the credentials are empty or too long")
        return self._memory.recall(credential) or self._check(credential)

    def knows_anybody(self) -> bool:
        """Whether there are credentials that would be taken."""
        return self._checker is not None or any_api_key()

    def _check(self, credential: str) -> Principal:
        if credential.startswith(PREFIX):
            found, longest = self._check_key(credential), _KEY_SECONDS
        elif self._checker is None:
            raise self._denied("tokens are not configured")
        else:
            try:
                found, longest = self._checker.check(credential), _TOKEN_SECONDS
            except InvalidToken as error:
                raise self._denied(f"the token is not valid: {error}") from None
        principal, end = found
        self._memory.remember(credential, principal, seconds=min(longest, end - time.time()))
        return principal

    def _check_key(self, key: str) -> tuple[Principal, float]:
        """The principal of an API key, and its end. A key that was refused once is so without the database: none is
        sent before it exists, and none that has ended becomes good again."""
        found = None if self._refused.recall(key) else find_principal(key)
        if found is None:
            if is_well_formed(key):  # any other costs nothing, and would crowd these out
                self._refused.remember(key, True, seconds=_REFUSED_SECONDS)
            raise self._denied("the key is unknown, wrong, expired or revoked")
        return found

    def _denied(self, reason: str, *, error: str | None = "invalid_token") -> Unauthenticated:
        """The reason is for the log alone: it would help whoever tries."""
        challenge = 'Bearer realm="orders"' + (f', error="{error}"' if error else "")
        denial = Unauthenticated("Send a valid API key or token in the header Authorization: Bearer …")
        denial.reason = reason
        return denial.with_headers(WWW_Authenticate=challenge)


def _from_this_machine() -> bool:
    """Neither from another address, nor passed on by a proxy for one, nor sent by a page of another site whose name
    was made to lead here (DNS rebinding)."""
    sent = current_request().environ  # each look through the request's properties would cost a microsecond
    passed_on_for = sent.get("HTTP_X_FORWARDED_FOR", "")
    return (
        sent.get("REMOTE_ADDR") in _LOOPBACK
        and (passed_on_for in _LOOPBACK or all(address.strip() in _LOOPBACK for address in passed_on_for.split(",")))
        and _is_local_host(sent.get("HTTP_HOST", "localhost"))  # browsers always name it
    )


@lru_cache(maxsize=64)
def _is_local_host(host: str) -> bool:
    """Whether a Host header is "localhost" or an address of this machine's loopback, in any spelling, with any port."""
    found = _HOST.fullmatch(host.lower())
    if not found:
        return False
    name = found["ipv6"] or found["name"].removesuffix(".")  # "localhost." is the absolute form of the same name
    return name == "localhost" or is_loopback(name)


def _read_public_key(pem: str) -> object:
    try:
        return read_public_key(pem)
    except ValueError as error:
        raise StartupError(f"JWT_PUBLIC_KEY must be {error}.") from None


def current_principal() -> Principal:
    """The principal of the request, who has the scope that the route requires."""
    principal: Principal = g.principal
    return principal


def loggable_id(principal: Principal) -> str:
    """Who calls, as it may stand in a log: a service by the name of its key, a person by a keyed hash.

    The same person has the same 16 hexadecimal digits as long as SECRET_KEY is the same.
    """
    if principal.customer_id is None and not principal.id.startswith("token:"):
        return principal.id
    return _keyed_hash(principal.id)


def loggable_customer(customer_id: str) -> str:
    """The hash that `loggable_id` has for the customer's own requests."""
    return _keyed_hash(customer_principal_id(customer_id))


def _keyed_hash(principal_id: str) -> str:
    key = blake2b(current_app.config["SECRET_KEY"].encode()).digest()
    return blake2b(principal_id.encode(), digest_size=8, key=key, person=b"principal in log").hexdigest()


log = structlog.get_logger()


class Readiness:
    """`checked` is False from a start without a database until the first request that finds it."""

    def __init__(self) -> None:
        self.checked = True

    def check(self) -> None:
        """Let a request through. Raises the database's error, or ServiceUnavailable where its schema is another."""
        if self.checked:
            return
        endpoint = current_request().endpoint
        if endpoint is None or declared_scope(current_app, endpoint) == PUBLIC:
            return
        try:
            require_revision()
        except SchemaMismatch as error:
            raise ServiceUnavailable(str(error)) from None
        try:
            require_credentials()
        except StartupError as error:  # clients are answered 401
            log.error(str(error))
        self.checked = True


def check_before_serving(app: Flask) -> None:
    """Check the database and the credentials before the first request.

    A database that cannot answer now may answer later: then the check is left to the first request that finds it.
    Raises StartupError for what a restart cannot mend.
    """
    try:
        require_revision()
        require_credentials()
    except StartupError:
        raise
    except DATABASE_ERRORS as error:
        reason = str(error).partition("\n")[0]
        if not is_unavailable(error) or is_missing_file(error):
            raise StartupError(f"The database cannot be used: {reason}") from None
        app.extensions["readiness"].checked = False
        log.warning("started without a database", error=type(error).__name__, reason=reason)
