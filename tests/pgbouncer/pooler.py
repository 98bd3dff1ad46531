"""The real PgBouncer in transaction mode, before a private PostgreSQL.

`python -m tests.pgbouncer.pooler COMMAND…` runs COMMAND with TEST_DATABASE_URL and DATABASE_POOLER set to such a
pooler, and exits with its status: every test on PostgreSQL then uses the pooler.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from app.db.engine import LIMITS
from tests.support.postgres import private_postgres
from tests.support.servers import TIMEOUT, free_port

# Few server connections for many clients, so that each transaction is likely to meet another session. PgBouncer's own
# defaults otherwise: it ignores no startup parameter, and does not support prepared statements.
CONFIGURATION = """
[databases]
* = host={server} port=5432
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 6
max_client_conn = 500
server_round_robin = 1
"""
ROLES = ("postgres", "unlimited", "serializable")


@contextmanager
def pooled_postgres() -> Iterator[tuple[str, str]]:
    """Yield the URLs of a new, empty server: through the pooler, and its own.

    The role `postgres` has the limits that the README advises, `unlimited` has none, and the transactions of
    `serializable` are serializable. All have all privileges.
    """
    with private_postgres() as server, tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        make_roles(server)
        port, directory = free_port(), Path(name)
        socket_directory = server.partition("?host=")[2].partition("&")[0]
        (directory / "users").write_text("".join(f'"{role}" ""\n' for role in ROLES))
        (directory / "pgbouncer.ini").write_text(
            CONFIGURATION.format(server=socket_directory, port=port, directory=directory)
        )
        with running_pgbouncer(directory, port):
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", server


def make_roles(server: str) -> None:
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE ROLE unlimited LOGIN SUPERUSER")
        connection.execute("CREATE ROLE serializable LOGIN SUPERUSER")
        for role in ("postgres", "serializable"):
            for name, value in LIMITS.items():
                connection.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
        connection.execute("ALTER ROLE serializable SET default_transaction_isolation = 'serializable'")


@contextmanager
def running_pgbouncer(directory: Path, port: int) -> Iterator[None]:
    program = shutil.which("pgbouncer")
    assert program, "pgbouncer is not installed: apt-get install pgbouncer"
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (directory, *directory.iterdir()):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "pgbouncer.ini"], cwd=directory, stdout=log, stderr=log, **user)
    try:
        wait_for(process, directory, port)
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def wait_for(process: subprocess.Popen[bytes], directory: Path, port: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"PgBouncer did not start:\n{(directory / 'log').read_text()}")


if __name__ == "__main__":
    with pooled_postgres() as (pooled_url, _):
        sys.exit(
            subprocess.call(
                sys.argv[1:], env={**os.environ, "TEST_DATABASE_URL": pooled_url, "DATABASE_POOLER": "transaction"}
            )
        )
