"""Space for the files that the workers of a machine share: what they count for the metrics and for the rate limits.

Such a file is sparse, and a process that writes to a page of its map for which there is no space left is killed by the
kernel (SIGBUS). So the space is reserved before a file is mapped, while a failure is still an exception.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from glob import escape as glob_escape
from glob import glob

_PREFIX, _LOCK = "order-service-", "lock"

RATE_LIMITS_BYTES = 1024 * 1024 + 4096  # app/http/rate_limit.py
# The files that prometheus_client maps for a process, and the bytes that app/telemetry.py needs at most.
_METRICS = {"histogram": 1024 * 1024, "counter": 16 * 1024, "gauge_livesum": 16 * 1024}
METRICS_BYTES = sum(_METRICS.values())  # of one process


def reserve(path: str, size: int) -> None:
    """Make the file, unless it exists, and fill it up with zeros. Raises OSError where there is no space for it."""
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.write(bytes(max(size - file.tell(), 0)))


def reserve_metrics() -> bool:
    """Reserve this process's files in PROMETHEUS_MULTIPROC_DIR, where that is set, before prometheus_client maps them.

    Where that fails, the setting is removed, so that this process keeps its metrics to itself, and False is returned.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is None:
        return True
    try:
        os.makedirs(directory, exist_ok=True)  # cleaners of temporary files may have taken it away
        for name, size in _METRICS.items():
            reserve(metrics_file(directory, name, os.getpid()), size)
    except OSError:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        return False
    return True


def metrics_file(directory: str, name: str, pid: int) -> str:
    """The file that prometheus_client maps for the metrics of this kind in this process."""
    return os.path.join(directory, f"{name}_{pid}.db")


def release_metrics(directory: str, pid: int) -> None:
    """Forget the gauges of a process that is gone, and give back the space it did not use; its counts stay."""
    for name in _METRICS:
        path = metrics_file(directory, name, pid)
        try:
            if name.startswith("gauge_live"):
                os.remove(path)  # prometheus_client.multiprocess.mark_process_dead
                continue
            with open(path, "r+b") as file:
                file.truncate(max(int.from_bytes(file.read(4), "little"), 8))  # the bytes in use stand first
        except OSError:
            continue  # removed, or never made


def shared_directory(*parents: str | None, size: int) -> str | None:
    """A new directory in the first of the parents that has room for so many bytes; None where none has.

    A parent of None is the system's directory for temporary files. Directories of servers that were killed are removed
    before: each would keep its space for good.
    """
    for parent in parents:
        try:
            _remove_abandoned(parent or tempfile.gettempdir())
            directory = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        except OSError:
            continue
        trial = os.path.join(directory, "trial")
        try:
            reserve(trial, size)
            os.remove(trial)
            _lock(directory)
            return directory
        except OSError:
            if os.path.exists(trial):
                os.remove(trial)
            os.rmdir(directory)
    return None


def _lock(directory: str) -> None:
    """Mark the directory as in use for as long as this process or one that it has forked is alive."""
    new = os.path.join(directory, "new")
    fcntl.flock(os.open(new, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # never closed
    os.rename(new, os.path.join(directory, _LOCK))  # only now, so that it is never seen without its lock


def _remove_abandoned(parent: str) -> None:
    for path in glob(os.path.join(glob_escape(parent), f"{_PREFIX}*", _LOCK)):
        with suppress(OSError), open(path) as file:  # in use, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(os.path.dirname(path))
