"""Files in memory that the workers of a machine share: metrics and rate limits.

The files are mapped into memory. If the file system is full, the kernel kills a process that writes to an unallocated
page (SIGBUS). So the space is reserved before a file is mapped, when a failure is still an exception.
"""

import fcntl
import os
import shutil
import stat
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
    """Create the file if necessary, and extend it with zeros to `size` bytes. Raises OSError if there is no space."""
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.write(bytes(max(size - file.tell(), 0)))


def reserve_metrics() -> bool:
    """Reserve this process's files in PROMETHEUS_MULTIPROC_DIR, if that is set, before prometheus_client maps them.

    If that fails, the variable is removed, so that this process does not share its metrics, and False is returned.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is None:
        return True
    try:
        os.makedirs(directory, exist_ok=True)  # a cleaner of temporary files may have removed it
        for name, size in _METRICS.items():
            reserve(metrics_file(directory, name, os.getpid()), size)
    except OSError:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        return False
    return True


def metrics_file(directory: str, name: str, pid: int) -> str:
    """The file that prometheus_client maps for one kind of metric and one process."""
    return os.path.join(directory, f"{name}_{pid}.db")


def release_metrics(directory: str, pid: int) -> None:
    """Remove the gauges of a process that has exited, and release the unused space of its other files."""
    for name in _METRICS:
        path = metrics_file(directory, name, pid)
        try:
            if name.startswith("gauge_live"):
                os.remove(path)  # prometheus_client.multiprocess.mark_process_dead
                continue
            with open(path, "r+b") as file:
                used = int.from_bytes(file.read(4), "little")  # the file starts with the number of bytes in use
                file.truncate(max(used, 8))
        except OSError:
            continue  # it does not exist


def shared_directory(*parents: str | None, size: int) -> str | None:
    """Create a directory in the first of the parents with `size` bytes of free space. None if no parent has them.

    A parent of None is the system's directory for temporary files. Directories of killed servers are removed first,
    because nobody else would free their space.
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
    """Lock the directory until this process and the processes that it forks have exited."""
    new = os.path.join(directory, "new")
    fcntl.flock(os.open(new, os.O_CREAT | os.O_RDWR, 0o600), fcntl.LOCK_EX)  # never closed
    os.rename(new, os.path.join(directory, _LOCK))  # after locking, so that no other process sees an unlocked file


def _remove_abandoned(parent: str) -> None:
    for path in glob(os.path.join(glob_escape(parent), f"{_PREFIX}*", _LOCK)):
        with suppress(OSError), open(path, opener=_open_without_waiting) as file:  # locked, or owned by another user
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.dirname(path))


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file of an untrusted directory: a FIFO blocks without O_NONBLOCK."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
