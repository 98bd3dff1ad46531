"""The database's address, as PostgreSQL's and SQLAlchemy's users write it.

Nothing here repeats a part of the URL in an error: where a password is not encoded, nobody can tell where it ends.
"""

import re
from pathlib import Path
from urllib.parse import unquote

from psycopg.pq import Conninfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

# RFC 3986 §3, with libpq's several hosts. A user name or a password holds no "@", "/", "?" or "#".
_POSTGRESQL = re.compile(
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?(?P<hosts>[^@/?#]*)"
    r"(?:/(?P<database>[^@/?#]*))?(?:\?(?P<query>[^@?#+]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?", re.ASCII)
_NOT_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})|\s|%00")
_PORTS = re.compile(r"\d*(,\d*)*", re.ASCII)
_PARAMETERS = frozenset(option.keyword.decode() for option in Conninfo.get_defaults())

_ENCODING = (
    "postgresql://user:password@host:port/name?parameters, percent-encoded where a part holds other characters than "
    "letters, digits and -._~: @ is %40, : %3A, / %2F, ? %3F, # %23, % %25, + %2B, a space %20"
)


def read_database_url(text: str, *, root: Path) -> str:
    """The URL for SQLAlchemy; a relative path of SQLite's is one below `root`.

    Raises ValueError with what is expected, which quotes nothing of the text.
    """
    scheme, separator, rest = text.strip().partition("://")
    if separator and scheme.lower() in ("postgres", "postgresql", "postgresql+psycopg"):
        return _postgresql(rest)
    if separator and scheme.lower() == "sqlite":
        return _sqlite(f"sqlite://{rest}", root)
    raise ValueError("a postgresql:// URL, or sqlite:/// with the path of a file")


def _postgresql(rest: str) -> str:
    parts = _POSTGRESQL.fullmatch(rest)
    if parts is None or _NOT_ENCODED.search(rest):
        raise ValueError(_ENCODING)
    query = _parameters(parts["query"] or "")
    host, port = _address(parts["hosts"])
    if "," in host or "/" in host:  # several, or the directory of a Unix socket
        query = {"host": host} | ({"port": port} if port.strip(",") else {}) | query
        host = port = ""
    url = URL.create(
        "postgresql+psycopg",
        username=_decode(parts["user"]),
        password=_decode(parts["password"]),
        host=host or None,
        port=int(port) if port else None,
        database=_decode(parts["database"]) or None,
        query=query,
    )
    return url.render_as_string(hide_password=False)


def _address(hosts: str) -> tuple[str, str]:
    """Hosts and ports, each separated by commas, as libpq takes them."""
    found = [_HOST.fullmatch(host) for host in hosts.split(",")]
    ports = [host["port"] or "" for host in found if host]
    if not all(found) or any(port and not 1 <= int(port[:6]) <= 65_535 for port in ports):
        raise ValueError(_ENCODING)
    names = [host["ipv6"] or _decode(host["name"]) or "" for host in found if host]
    return ",".join(names), ",".join(ports)


def _parameters(query: str) -> dict[str, str]:
    """What stands behind the question mark: libpq's own parameters, each once."""
    parameters: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, separator, value = pair.partition("=")
        if not separator or name not in _PARAMETERS or name in parameters:
            raise ValueError("a URL whose parameters are libpq's, such as sslmode or options, each given once")
        parameters[name] = _decode(value) or ""
    if not _PORTS.fullmatch(parameters.get("port", "")):
        raise ValueError("a URL whose port is a whole number")
    return parameters


def _decode(part: str | None) -> str | None:
    try:
        return None if part is None else unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(_ENCODING) from None


def _sqlite(text: str, root: Path) -> str:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("sqlite:/// with the path of a file") from None
    is_uri = url.query.get("uri", "") in ("1", "true") and (url.database or "").startswith("file:")
    path = (url.database or "").removeprefix("file:" if is_uri else "")
    if url.host or url.username or not path or path.startswith(":memory:") or url.query.get("mode") == "memory":
        raise ValueError("sqlite:/// with the path of a file; each worker would have memory of its own")
    full = str(root / path)
    return url.set(database=f"file:{full}" if is_uri else full).render_as_string(hide_password=False)
