"""The flask commands, and how a user runs them."""

import os
import pty
import resource
import signal
import subprocess
import sys
from typing import Any

from tests.support.servers import ROOT, TIMEOUT, environment, free_port, on_port

FLASK = ("-m", "flask", "--app", "wsgi")
COMMANDS = {
    "seed": ("seed", "--orders", "5"),
    "export": ("orders", "export"),
    "list orders": ("orders", "list"),
    "import": ("orders", "import", "/dev/null"),
    "expire": ("orders", "expire", "--older-than", "30d"),
    "verify": ("verify",),
    "export personal data": ("privacy", "export", "c-1"),
    "resume": ("privacy", "resume"),
    "erase": ("privacy", "erase", "c-1"),
    "prune": ("events", "prune", "--older-than", "30d"),
    "renumber": ("events", "renumber"),
    "replay": ("broker", "replay", "--after", "0"),
    "create": ("api-keys", "create", "--name", "shop", "--scope", "orders:read"),
    "rebuild": ("search", "rebuild"),
    "list": ("api-keys", "list"),
    "list webhooks": ("webhooks", "list"),
    "revoke": ("api-keys", "revoke", "0123456789abcdef"),
}


def run_python(*words: str, stdout: int = subprocess.PIPE, file_size: int | None = None, **settings: str) -> Any:
    """Run Python with these arguments until it exits; `{port}` in them and PORT are a free port.

    It cannot write a file of more than `file_size` bytes.
    """
    port = free_port()

    def limit() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.run(
        [sys.executable, *on_port(words, port)], cwd=ROOT, env=environment(**{"PORT": str(port)} | settings), text=True,
        timeout=TIMEOUT, stdout=stdout, stderr=subprocess.PIPE, preexec_fn=limit,
    )  # fmt: skip


def on_terminal(*command: str, database_url: str, lines: int | None = None) -> str:
    """Run a flask command on a terminal, until it ends or has shown so many lines, and return what it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *FLASK, *command], cwd=ROOT, env=environment(DATABASE_URL=database_url), stdout=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while (lines is None or shown.count(b"\n") < lines) and (chunk := os.read(ours, 65536)):
            shown += chunk
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    if lines is not None:
        process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(TIMEOUT) == 0
    return shown.decode().replace("\r\n", "\n")
