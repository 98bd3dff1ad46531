"""Standard error for logs: a line that cannot be written is counted and dropped, and fails nobody's request."""

import io
import os
from collections.abc import Callable
from typing import Any, TextIO


class _LossyFile(io.RawIOBase):
    """A file descriptor to which writing always succeeds.

    The disk may be full, the reader of a pipe dead, the descriptor closed. Nothing is buffered: what has been dropped
    does not come back later, and takes no memory.
    """

    def __init__(self, descriptor: int, on_loss: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_loss = on_loss
        self._torn = False  # whether the beginning of a line stands alone in the file

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write it all or call `on_loss`; the length, as if all had been written."""
        rest = b"\n" + bytes(data) if self._torn else bytes(data)
        written = 0
        try:
            while written < len(rest):
                written += os.write(self._descriptor, rest[written:])
            self._torn = False
        except OSError:
            self._torn = self._torn or written > 0
            self._on_loss()
        return len(data)


def lossy(stream: TextIO | None, *, on_loss: Callable[[], None]) -> TextIO:
    """The stream, or what writes to its file, with `on_loss` called for whatever could not be written.

    None is what Python makes of a standard error that is closed: then everything is lost. A stream without a file is
    returned as it is.
    """
    if stream is not None and isinstance(getattr(stream, "buffer", None), _LossyFile):
        return stream
    try:
        descriptor = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):
        assert stream is not None
        return stream
    file: Any = _LossyFile(descriptor, on_loss)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", write_through=True)
