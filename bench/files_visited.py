"""The files of `app/` that one `POST /orders` on PostgreSQL visits, in the order of the first visit.

Run with `python -m tests.support.postgres python -m bench.files_visited`.
"""

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import flask_migrate

from app import create_app

ROOT = Path(__file__).parent.parent
APP = str(ROOT / "app") + os.sep
ORDER = {
    "customer_id": "c-123",
    "currency": "EUR",
    "items": [{"item_id": "sku-1", "quantity": 2, "unit_price": 1250}],
}


def main() -> None:
    app = create_app({"AUTH": "off", "LOG_LEVEL": "warning"})
    with app.app_context():
        flask_migrate.upgrade(directory=str(ROOT / "migrations"))
    client = app.test_client()
    visited: dict[str, set[str]] = {}

    def visit(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(APP):
            visited.setdefault(frame.f_code.co_filename.removeprefix(APP), set()).add(frame.f_code.co_qualname)

    for attempt in range(4):  # the first requests also open connections and fill caches
        visited.clear()
        sys.setprofile(visit)
        response = client.post("/orders", json=ORDER, headers={"Idempotency-Key": f"visit-{attempt}"})
        sys.setprofile(None)
        assert response.status_code == 201, response.text
    for name, functions in visited.items():
        print(f"{name:32} {', '.join(sorted(functions))}")
    print(f"{len(visited)} files, {sum(map(len, visited.values()))} functions")


if __name__ == "__main__":
    main()
