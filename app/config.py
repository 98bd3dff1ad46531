"""The settings: read from the environment once, and validated at start-up.

`SETTINGS` lists them all; a test compares the README's table with it. This module imports the standard library only:
gunicorn.conf.py runs it in the master process, before gevent patches the workers. A library such as environs would
replace about 20 lines of it: most settings have rules of their own, and `create_app(test_config)` must override them.
"""

import json
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

ROOT = Path(__file__).resolve().parent.parent


class StartupError(Exception):
    """The service cannot start. The message is one line that says what to do."""


_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_AGE_MAX = timedelta(days=36_500)  # a longer duration is a mistake
_AGE_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_AGE = "a duration in days, hours or minutes from 1m to 36500d, such as 30d"
_SECRET_MIN = 32  # characters
RANDOM_KEY_PREFIX = "random-"  # prefix of a SECRET_KEY that is random at each start: nothing stored may depend on it
_RANDOM_KEY = re.compile(rf"{RANDOM_KEY_PREFIX}[0-9a-f]{{{2 * _SECRET_MIN}}}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address: 127.0.0.0/8, ::1, or the first as an IPv4-mapped IPv6 address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# RFC 3986 §3, with libpq's list of hosts. A user name or a password contains no "@", "/", "?" or "#".
_POSTGRESQL = re.compile(
    r"(?P<login>[^:@/?#]*(?::[^@/?#]*)?@)?(?P<hosts>[^@/?#]*)(?P<database>/[^@/?#]*)?(?:\?(?P<query>[^@?#+]*))?"
)
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]]*)(?::(?P<port>\d*))?", re.ASCII)
_PORTS = re.compile(r"\d*(,\d*)*", re.ASCII)
_UNENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})|\s|%00")
_ENCODING = (
    "postgresql://user:password@host:port/name?parameters, percent-encoded where a part contains characters other than "
    "letters, digits and -._~: @ is %40, : %3A, / %2F, ? %3F, # %23, % %25, + %2B, a space %20"
)
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
LIBPQ_PARAMETERS = frozenset(
    "application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssdelegation "
    "gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname "
    "load_balance_hosts max_protocol_version min_protocol_version oauth_client_id oauth_client_secret oauth_issuer "
    "oauth_scope options passfile password port replication require_auth requirepeer scram_client_key "
    "scram_server_key service ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode sslcompression "
    "sslcrl sslcrldir sslkey sslkeylogfile sslmode sslnegotiation sslpassword sslrootcert sslsni target_session_attrs "
    "tcp_user_timeout user".split()
)


def _database_url(text: str) -> str:
    """The URL for SQLAlchemy. A relative path of a SQLite file is relative to the project's directory.

    Raises ValueError with what is expected. It quotes no part of the URL: where a password is not encoded, its end
    cannot be found.
    """
    scheme, separator, location = text.strip().partition("://")
    if separator and scheme.lower() in ("postgres", "postgresql", "postgresql+psycopg"):
        return _postgresql_url(location)
    if separator and scheme.lower() == "sqlite":
        return _sqlite_url(location)
    raise ValueError("a postgresql:// URL, or sqlite:/// with the path of a file")


def _postgresql_url(location: str) -> str:
    parts = _POSTGRESQL.fullmatch(location)
    if parts is None or _UNENCODED.search(location) or "\N{REPLACEMENT CHARACTER}" in unquote(location):
        raise ValueError(_ENCODING)
    hosts = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")]
    ports = [host["port"] or "" for host in hosts if host]
    if not all(hosts) or any(port and not 1 <= int(port[:6]) <= 65_535 for port in ports):
        raise ValueError(_ENCODING)
    names = [host["name"] for host in hosts if host]
    parameters = _libpq_parameters(parts["query"] or "")
    address = names[0] + (f":{ports[0]}" if ports[0] else "")
    if len(names) > 1 or "%" in address:  # several hosts, or the directory of a Unix socket
        address = ""
        several = {"host": ",".join(unquote(name).strip("[]") for name in names)}
        parameters = several | ({"port": ",".join(ports)} if any(ports) else {}) | parameters
    query = f"?{urlencode(parameters)}" if parameters else ""
    return f"postgresql+psycopg://{parts['login'] or ''}{address}{parts['database'] or ''}{query}"


def _libpq_parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, separator, value = pair.partition("=")
        if not separator or name not in LIBPQ_PARAMETERS or name in parameters:
            raise ValueError("a URL with parameters of libpq, such as sslmode or options, and no duplicates")
        parameters[name] = unquote(value)
    if not _PORTS.fullmatch(parameters.get("port", "")):
        raise ValueError("a URL with a numeric port")
    return parameters


def _sqlite_url(location: str) -> str:
    path, _, query = location.partition("?")
    parameters = parse_qs(query)
    is_uri = parameters.get("uri") in (["1"], ["true"]) and path.startswith("/file:")
    scheme = "file:" if is_uri else ""
    file = unquote(path).removeprefix(f"/{scheme}")
    if not path.startswith("/") or not file or file.startswith(":memory:") or parameters.get("mode") == ["memory"]:
        raise ValueError("sqlite:/// with the path of a file; workers share no database in memory")
    return f"sqlite:///{scheme}{quote(str(ROOT / file), safe='/ +')}" + (f"?{query}" if query else "")


_BROKERS = "amqp", "amqps", "redis", "rediss", "sqs", "kafka"
_BROKER_URL = re.compile(
    rf"({'|'.join(_BROKERS)})://([^:@/?#\s]*(:[^:@/?#\s]*)?@)?"
    r"([\w.-]*|\[[0-9a-f:.]+\])(:\d{1,5})?(/[^@?#\s]*)?(\?[^@#\s]*)?",
    re.ASCII,
)


def _broker_url(text: str) -> str:
    if text and not _BROKER_URL.fullmatch(text):
        raise ValueError(
            "amqp://user:password@host:port/vhost, or such a URL with amqps, redis, rediss, sqs or kafka, "
            "percent-encoded where the user name or the password contains : @ / ? or #"
        )
    return text


def _broker_topic(text: str) -> str:
    if not re.fullmatch(r"(?!amq\.)[A-Za-z0-9_.-]{1,80}", text):
        raise ValueError("1 to 80 letters, digits and the characters _.-, not beginning with `amq.`")
    return text


def _uri_reference(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,200}", text):
        raise ValueError("a URI such as https://shop.example/orders, or a path")
    return text


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("a JSON object")
    return value


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"an integer from {low} to {high}")
        return int(text)

    return parse


def _host(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9._-]{1,253}", text, re.ASCII | re.IGNORECASE):
            raise ValueError("an address of this machine, such as 127.0.0.1, or its name") from None
    return text


def _unix_socket(text: str) -> str:
    if text and not text.startswith("unix:/"):
        raise ValueError("unix: and the absolute path of a socket")
    return text


def _url_prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if prefix and not re.fullmatch(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)+", prefix):
        raise ValueError("a path such as /shop/api")
    return prefix


def _pooler(text: str) -> str:
    if text.lower() not in ("", "transaction"):
        raise ValueError("transaction, or empty for a pooler in session mode or none")
    return text.lower()


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _web_url(text: str) -> str:
    if text and not re.fullmatch(r"https://[^\s/@]+/\S*|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/\S*", text):
        raise ValueError("an https:// URL with a path, without a user name and a password")
    return text


def normalize_origin(text: str) -> str:
    """The origin as browsers serialize it (RFC 6454 §6): in lower case, without the scheme's default port.

    Raises ValueError unless it is an http or https origin in ASCII.
    """
    try:
        url = urlsplit(text.lower())
        if not _ORIGIN.fullmatch(text.lower()):
            raise ValueError(text)
        host, port = url.hostname or "", url.port
        name = f"[{IPv6Address(host)}]" if ":" in host else host
    except ValueError:
        raise ValueError(
            "a comma-separated list of origins such as https://shop.example, without paths or wildcards; international "
            "domain names in their xn-- form"
        ) from None
    return f"{url.scheme}://{name}" + ("" if port in (None, _DEFAULT_PORTS[url.scheme]) else f":{port}")


def _secret(text: str) -> str:
    """The secret, or a random one for this process if none is set."""
    if text and len(text) < _SECRET_MIN:
        raise ValueError(f"at least {_SECRET_MIN} characters, such as the output of `openssl rand -hex 32`")
    if text.startswith(RANDOM_KEY_PREFIX) and not _RANDOM_KEY.fullmatch(text):  # gunicorn passes its own to the workers
        raise ValueError(f"a key that does not begin with {RANDOM_KEY_PREFIX}, which marks one that is not set")
    return text or RANDOM_KEY_PREFIX + secrets.token_hex(_SECRET_MIN)


def parse_age(text: str) -> timedelta:
    """A duration in days, hours or minutes. Raises ValueError with what is expected."""
    match = re.fullmatch(r"(\d{1,8})([dhm])", text, re.ASCII)
    age = timedelta(**{_AGE_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < age <= _AGE_MAX:
        raise ValueError(_AGE)
    return age


def _optional_age(text: str) -> timedelta | None:
    return parse_age(text) if text else None


def _list(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(",") if part.strip())


def _origins(text: str) -> frozenset[str]:
    return frozenset(map(normalize_origin, _list(text)))


def _header_names(text: str) -> tuple[str, ...]:
    names = tuple(_list(text))
    if not all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names):
        raise ValueError("a comma-separated list of header names such as X-Tenant")
    return names


def _pem(text: str) -> str:
    return text.replace("\\n", "\n")  # some tools cannot put line breaks into an environment variable


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{', '.join(choices[:-1])} or {choices[-1]}")
        return text.lower()

    return parse


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting. `default` is a text, as in the environment; `parse` raises ValueError with what is expected."""

    default: str
    parse: Callable[[str], Any]
    description: str


SETTINGS: dict[str, Setting] = {
    "HOST": Setting("127.0.0.1", _host, "Address that gunicorn listens on."),
    "PORT": Setting("8000", _whole_number(1, 65535), "Port that gunicorn listens on."),
    "BIND": Setting("", _unix_socket, "Unix socket for nginx, `unix:/path`, in place of `HOST` and `PORT`."),
    "URL_PREFIX": Setting("", _url_prefix, "Path prefix of all URLs, such as `/shop/api`."),
    "DATABASE_URL": Setting(
        "sqlite:///instance/orders.db",
        _database_url,
        "`postgresql://user:password@host/name`, or `sqlite:///` and the path of a file.",
    ),
    "DATABASE_POOL_SIZE": Setting("10", _whole_number(1, 1000), "Database connections of one worker."),
    "DATABASE_POOLER": Setting("", _pooler, "`transaction` if the database is behind PgBouncer in transaction mode."),
    "WEB_CONCURRENCY": Setting("0", _whole_number(0, 512), "Workers; 0 means one per core, and at most two on SQLite."),
    "MAX_REQUESTS_IN_PROGRESS": Setting(
        "100",
        _whole_number(0, 100_000),
        "Requests that one worker processes at the same time; further ones get 503. 0 means no limit.",
    ),
    "AUTH": Setting(
        "required", _one_of("required", "off"), "`off` accepts all requests from this machine without authentication."
    ),
    "AUTH_ALLOW_OPEN": Setting("0", _flag, "1: with `AUTH=off`, accept requests from other machines too."),
    "JWT_JWKS_URL": Setting("", _web_url, "URL of the key set (JWKS) that verifies bearer tokens."),
    "JWT_PUBLIC_KEY": Setting(
        "", _pem, "Alternatively, the public key (PEM) that verifies them: RSA, P-256 or Ed25519."
    ),
    "JWT_ISSUER": Setting("", str, "Issuer (`iss`) of the tokens; required with `JWT_JWKS_URL` or `JWT_PUBLIC_KEY`."),
    "JWT_AUDIENCE": Setting(
        "", str, "Audience (`aud`) of the tokens; required with `JWT_JWKS_URL` or `JWT_PUBLIC_KEY`."
    ),
    "JWT_SIGNING_KEY": Setting("", _pem, "For development: the private key (PEM) of `flask token`."),
    "SECRET_KEY": Setting(
        "",
        _secret,
        "Key of the hashes that identify persons in the logs, and of the encryption of webhook secrets; random at each "
        "start if not set, and webhook secrets are then stored in plain text.",
    ),
    "CONSOLE": Setting("on", _one_of("on", "off"), "`off`: do not serve the console."),
    "CORS_ORIGINS": Setting("", _origins, "Origins of browser frontends, separated by commas."),
    "CORS_HEADERS": Setting(
        "", _header_names, "Further request headers that these origins may send, separated by commas."
    ),
    "RATE_LIMIT_CUSTOMERS": Setting(
        "600", _whole_number(0, 10**6), "Requests a minute of one customer; 0 means no limit."
    ),
    "RATE_LIMIT_SERVICES": Setting("0", _whole_number(0, 10**6), "Requests a minute of one service; 0 means no limit."),
    "EXPORT_STREAMS": Setting("4", _whole_number(1, 1000), "Concurrent exports of one principal and worker."),
    "EXPORT_SECONDS": Setting("900", _whole_number(1, 86400), "Seconds after which an export is aborted."),
    "EVENT_STREAMS": Setting(
        "4000",
        _whole_number(1, 100_000),
        "Concurrent event streams and waiting readers of one worker; fewer where it may open few files.",
    ),
    "EVENT_STREAMS_CUSTOMERS": Setting(
        "10", _whole_number(1, 100_000), "Concurrent event streams and waiting readers of one customer and worker."
    ),
    "EXPIRE_PENDING_AFTER": Setting(
        "",
        _optional_age,
        "Age at which `flask worker` cancels unconfirmed, unpaid orders: `30d`, `12h`, `45m`; never if empty.",
    ),
    "WORKER_METRICS_PORT": Setting(
        "0", _whole_number(0, 65535), "Port on `HOST` where `flask worker` serves `/metrics`; 0 means none."
    ),
    "WEBHOOKS_ALLOW_PRIVATE": Setting(
        "0", _flag, "1, for development: webhooks may use http, and loopback and private addresses."
    ),
    "BROKER_URL": Setting(
        "",
        _broker_url,
        "Message broker that `flask worker` publishes events to: an `amqp`, `redis`, `sqs` or `kafka` URL "
        "([docs/broker.md](docs/broker.md)).",
    ),
    "BROKER_TOPIC": Setting(
        "order-events", _broker_topic, "The exchange (AMQP), queue (Redis, SQS) or topic (Kafka) for the events."
    ),
    "BROKER_PAYLOAD": Setting(
        "thin", _one_of("thin", "order"), "`order`: published events contain the whole order, with its personal data."
    ),
    "BROKER_SOURCE": Setting("/orders", _uri_reference, "The `source` of published events: a URI of your own."),
    "BROKER_OPTIONS": Setting("{}", _json_object, "Further options of kombu's transport, as a JSON object."),
    "REQUIRE_IF_MATCH": Setting("0", _flag, "1: changes need `If-Match`, and are refused with 428 without it."),
    "LOG_LEVEL": Setting(
        "info",
        _one_of("debug", "info", "warning", "error"),
        "Minimum level of log lines: `debug`, `info`, `warning` or `error`.",
    ),
    "LOG_FORMAT": Setting(
        "json", _one_of("json", "console"), "`json` for one object a line, `console` for a terminal."
    ),
}

_OLDEST_SQLITE = 3, 35  # the first with RETURNING


def load_config(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read and validate the settings. Overrides precede environment variables, which precede defaults.

    Raises StartupError with the name of the setting, its value unless it may be secret, and what is expected.
    """
    config: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        text = str((overrides or {}).get(name, os.environ.get(name) or setting.default))
        try:
            config[name] = setting.parse(text)
        except ValueError as error:
            secret = name.endswith(("URL", "KEY", "OPTIONS"))  # a URL may contain a password
            value = "…" if secret else repr(text)
            raise StartupError(f"{name} is {value}; it must be {error}.") from None
    if os.environ.get("SCRIPT_NAME"):  # gunicorn reads it from the environment, other servers do not
        raise StartupError("SCRIPT_NAME is set, but servers interpret it differently. Set URL_PREFIX instead.")
    _check_combinations(config)
    extra = {name: value for name, value in (overrides or {}).items() if name not in SETTINGS}
    return config | extra


def _check_combinations(config: Mapping[str, Any]) -> None:
    """Raise StartupError for valid settings that contradict each other, or that this Python does not support."""
    host = config["HOST"].lower().removesuffix(".")
    loopback = config["BIND"] or host == "localhost" or is_loopback(host)
    if config["AUTH"] == "off" and not loopback and not config["AUTH_ALLOW_OPEN"]:
        raise StartupError(
            f"AUTH is off and HOST is {config['HOST']!r}: set AUTH=required, or AUTH_ALLOW_OPEN=1 to give everybody "
            "who can reach that address full access."
        )
    if config["DATABASE_URL"].startswith("sqlite") and sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StartupError(
            f"This Python has SQLite {sqlite3.sqlite_version}, but 3.35 or newer is required. Use a Python with "
            "a newer SQLite, or set DATABASE_URL to a PostgreSQL database."
        )
    if config["JWT_JWKS_URL"] and config["JWT_PUBLIC_KEY"]:
        raise StartupError("JWT_JWKS_URL and JWT_PUBLIC_KEY are both set: set the one that verifies the tokens.")
    tokens = config["JWT_JWKS_URL"] or config["JWT_PUBLIC_KEY"]
    for name in ("JWT_ISSUER", "JWT_AUDIENCE"):
        if tokens and not config[name]:
            raise StartupError(
                f"{name} is not set. Set it: otherwise, tokens issued for other services would be accepted."
            )
