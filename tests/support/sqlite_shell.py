"""A replacement for sqlite3 on machines without it: `FILE COMMAND`, SQL or `.backup COPY`."""

import sqlite3
import sys
from contextlib import closing


def main() -> None:
    file, command = sys.argv[1:]
    with closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as source:
        if not command.startswith(".backup "):
            source.execute(command)
            return
        with closing(sqlite3.connect(command.removeprefix(".backup "))) as target:
            source.backup(target)


if __name__ == "__main__":
    main()
