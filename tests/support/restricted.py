"""`python -m tests.support.restricted MODULE ARGUMENTS…` runs a module as a user who cannot override file permissions.

Tests may run as root, who can override permissions; the capabilities for that are dropped.
"""

import ctypes
import runpy
import sys

_VERSION = 0x20080522  # capget(2): two words of each set
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def obey_file_permissions() -> None:
    """Drop the capabilities of this process that override permissions, if it has any."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for i in range(3):  # effective, permitted, inheritable
        sets[i] &= ~_OVERRIDES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    obey_file_permissions()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
