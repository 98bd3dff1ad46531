"""`python -m tests.support.read_only_root DIRECTORY MODULE ARGUMENTS…` runs a module that can write to one directory.

As on a root file system that is mounted read-only, every other attempt to write fails with EROFS. The interpreter's
audit events replace the mount, which needs privileges that a test may not have.
"""

import errno
import os
import runpy
import sys
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def refuse_writes_outside(directory: str) -> None:
    """Make every later attempt of this process to write outside the directory fail."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in _CHANGES or (event == "open" and bool(arguments[2] & _WRITING))
        if writes and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(directory) and path not in ("/dev/null", "/dev/tty"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    sys.addaudithook(refuse)


if __name__ == "__main__":
    refuse_writes_outside(os.path.abspath(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
