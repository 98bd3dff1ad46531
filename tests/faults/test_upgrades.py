"""Several processes migrate one database at the same time."""

import subprocess
import sys
from pathlib import Path

from tests.support.commands import FLASK
from tests.support.databases import flask, new_database
from tests.support.servers import ROOT, TIMEOUT, environment


def test_concurrent_upgrades_run_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    is_sqlite = database_url.startswith("sqlite")
    url = f"sqlite:///{tmp_path}/empty.db" if is_sqlite else new_database(database_url, "empty")
    command, settings = [sys.executable, *FLASK, "db", "upgrade"], environment(DATABASE_URL=url)

    upgrades = [subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [upgrade.communicate(timeout=TIMEOUT)[1] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0, 0, 0], errors
    assert "(head)" in flask(url, "db", "current")
