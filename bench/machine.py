"""The description of the machine for the report, without host names and paths."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL

_PACKAGES = """
    flask gunicorn gevent sqlalchemy psycopg marshmallow orjson fastapi starlette pydantic uvicorn uvloop httptools
    asyncpg litestar msgspec django django-ninja
""".split()


def describe_machine(postgres: URL) -> dict[str, str]:
    """Return names and values, in the order of the report."""
    with psycopg.connect(postgres.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("server_version", "shared_buffers")]
        release, buffers = (row[0] if row else "unknown" for row in shown)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    processor = re.search(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": processor[1] if processor else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "Python": f"{platform.python_version()}, {platform.python_compiler()}",
        "PostgreSQL": f"{release}, durable, on a Unix socket, shared_buffers {buffers}",
        "nginx": _version_of("nginx", "-v"),
        "wrk": _version_of("wrk", "-v"),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def _version_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown"
