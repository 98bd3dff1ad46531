"""The contestants, and the machine testbed: one PostgreSQL, one nginx, and every contestant behind it on a socket."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from tests.support.postgres import private_postgres
from tests.support.servers import ROOT, free_port, send_request

TIMEOUT = 60  # seconds for a process to start or stop; a busy machine takes several
WORKERS = str(len(os.sched_getaffinity(0)))  # one a core, for names
WORKS = ("post-keyed", "post", "get", "list", "batch", "confirm")

_SITE = """
upstream {name} {{ server unix:{socket}; keepalive 64; keepalive_timeout 10s; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{name}; }} }}
"""


@dataclass(frozen=True)
class Contestant:
    """A service to be measured, with the Python commands that create its tables and serve it."""

    name: str
    title: str
    prepare: Sequence[str]
    serve: Sequence[str]
    works: Sequence[str] = WORKS
    sqlite: bool = False
    seed: int = 0  # orders in the database at the start


def _uvicorn(module: str, title: str, prepare: str) -> Contestant:
    options = "--loop uvloop --http httptools --no-access-log --log-level warning --timeout-keep-alive 75".split()
    serve = ("uvicorn", "--uds", "@socket", "--workers", WORKERS, *options, f"bench.peers.{module}:app")
    return Contestant(module.replace("_", "-"), title, (f"bench.peers.{prepare}",), serve)


_MIGRATE = ("flask", "--app", "wsgi", "db", "upgrade")
_SERVE = ("gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
_NO_BATCH = tuple(work for work in WORKS if work != "batch")
_NO_CONFIRM = tuple(work for work in WORKS if work != "confirm")
OURS = Contestant("order-service", "Order service", _MIGRATE, _SERVE)
CONTESTANTS = (
    OURS,
    _uvicorn("fastapi_orm", "FastAPI + async SQLAlchemy ORM", "fastapi_orm"),
    _uvicorn("fastapi_asyncpg", "FastAPI + raw asyncpg", "store"),
    _uvicorn("litestar_asyncpg", "Litestar + msgspec + raw asyncpg", "store"),
    _uvicorn("litestar_grouped", "Litestar with our group commit", "store"),
    Contestant(
        "django-ninja",
        "Django Ninja + ORM",
        ("bench.peers.django_ninja_orm.manage", "migrate", "--run-syncdb", "--verbosity", "0"),
        (
            "gunicorn",
            "-c",
            "python:bench.peers.django_ninja_orm.gunicorn_settings",
            "bench.peers.django_ninja_orm.wsgi:application",
        ),
        _NO_BATCH,
    ),
    Contestant(
        "flask-tutorial",
        "Flask + ORM, as in tutorials",
        ("bench.peers.flask_tutorial",),
        ("gunicorn", "-c", "gunicorn.conf.py", "bench.peers.flask_tutorial:app"),
        _NO_BATCH,
    ),
    Contestant("order-service-sqlite", "Order service on SQLite", _MIGRATE, _SERVE, _NO_CONFIRM, sqlite=True),
    Contestant(
        "ungrouped-sqlite",
        "… on SQLite, without group commit",
        _MIGRATE,
        ("gunicorn", "-c", "gunicorn.conf.py", "bench.peers.ungrouped:app"),
        ("post-keyed", "post"),
        sqlite=True,
    ),
)


def checkout(directory: Path) -> Contestant:
    """The service of another checkout, which has its own environment in `.venv`."""
    run = ("bench.checkout", str(directory.resolve()))
    return Contestant("order-service-before", "Order service before", (*run, *_MIGRATE), (*run, *_SERVE))


def with_orders(orders: int) -> Contestant:
    """The service with a number of orders at the start."""
    title = f"Order service with {orders:,} orders"
    return Contestant(f"order-service-{orders}", title, _MIGRATE, _SERVE, ("post-keyed", "get", "list"), seed=orders)


@dataclass(frozen=True)
class Server:
    """A running contestant, and its port of nginx."""

    contestant: Contestant
    port: int
    url: str
    pid: int

    def ids(self, count: int, condition: str = "true", order: str = "random()") -> list[str]:
        """Return ids of orders; table and columns have the same names for all contestants."""
        engine = create_engine(self.url.replace("postgresql:", "postgresql+psycopg:", 1))
        query = text(f"SELECT id FROM orders WHERE {condition} ORDER BY {order} LIMIT {count}")
        with engine.connect() as connection:
            found = [str(one) for one in connection.scalars(query)]
        engine.dispose()
        return found


@dataclass(frozen=True)
class Testbed:
    """The running processes."""

    postgres: URL
    postgres_pid: int
    nginx_pid: int
    servers: dict[str, Server]
    directory: Path


@contextmanager
def running_testbed(contestants: Sequence[Contestant]) -> Iterator[Testbed]:
    """Start all processes, and yield once all respond. Raises RuntimeError with the log of one that does not."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        directory.chmod(0o755)  # if nginx is started by root, its workers are another user
        postgres = make_url(stack.enter_context(private_postgres(durable=True, shared_buffers=_quarter_of_memory())))
        data = Path(str(postgres.query["host"])) / "data"
        pid = int((data / "postmaster.pid").read_text().split()[0])
        (directory / "sites").mkdir()
        servers = {one.name: _start(stack, one, postgres, directory) for one in contestants}
        nginx = stack.enter_context(_nginx(directory))
        for server in servers.values():
            _wait_for(server, directory)
        yield Testbed(postgres, pid, nginx.pid, servers, directory)


def _quarter_of_memory() -> str:
    """The size that PostgreSQL's manual recommends. The default, 128 MB, is too small for the tables."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 4 // 2**20}MB"


def database(postgres: URL, name: str) -> str:
    """Create a database, and return its URL."""
    with psycopg.connect(_plain(postgres), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return _plain(postgres.set(database=name))


def analyze(testbed: Testbed) -> None:
    """Update the planner statistics, which are those of empty tables; autovacuum would do it within minutes."""
    with psycopg.connect(_plain(testbed.postgres)) as connection:
        names = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").fetchall()
    for (name,) in names:
        with psycopg.connect(_plain(testbed.postgres.set(database=name)), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


def prepare(contestant: Contestant, url: str) -> None:
    """Create the tables, and the orders of the start."""
    _python(contestant.prepare, url)
    if contestant.seed:
        _python(("flask", "--app", "wsgi", "seed", "--new", "--orders", str(contestant.seed)), url)


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _python(command: Sequence[str], url: str) -> None:
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=_environment(DATABASE_URL=url), check=True)


def _environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return kept | {"AUTH": "off", "LOG_FORMAT": "json", "WEB_CONCURRENCY": WORKERS} | settings


def _start(stack: ExitStack, contestant: Contestant, postgres: URL, directory: Path) -> Server:
    sqlite = f"sqlite:///{directory / contestant.name}.db"
    url = sqlite if contestant.sqlite else database(postgres, contestant.name)
    prepare(contestant, url)
    socket, port = str(directory / f"{contestant.name}.sock"), free_port()
    site = _SITE.format(name=contestant.name, socket=socket, port=port)
    (directory / "sites" / f"{contestant.name}.conf").write_text(site)
    words = [sys.executable, "-m", *(word.replace("@socket", socket) for word in contestant.serve)]
    environment = _environment(DATABASE_URL=url, BIND=f"unix:{socket}")
    log = stack.enter_context((directory / f"{contestant.name}.log").open("wb"))
    process = stack.enter_context(_process(Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)))
    return Server(contestant, port, url, process.pid)


def _nginx(directory: Path) -> AbstractContextManager[Popen[bytes]]:
    program = shutil.which("nginx")
    assert program, "nginx is not installed: apt-get install nginx-light"
    configuration = (ROOT / "bench" / "nginx.conf").read_text().replace("@directory", str(directory))
    (directory / "nginx.conf").write_text(configuration)
    return _process(Popen([program, "-e", "stderr", "-p", str(directory), "-c", str(directory / "nginx.conf")]))


@contextmanager
def _process(process: Popen[bytes]) -> Iterator[Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(server: Server, directory: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        with suppress(OSError):
            if send_request(server.port, "GET", "/orders?limit=1").status == 200:
                return
        time.sleep(0.05)
    log = (directory / f"{server.contestant.name}.log").read_text()
    raise RuntimeError(f"{server.contestant.name} does not respond:\n{log}")
