"""Tasks for child processes, which import only this module."""

import os

import structlog
from sqlalchemy import text

from app.db.engine import db


def end_with(status: int) -> None:
    os._exit(status)


def read_a_missing_table(_task: int) -> None:
    with db.engine.connect() as connection:
        connection.execute(text("SELECT * FROM missing"))


def log_a_line(_task: int) -> None:
    structlog.get_logger().warning("a line of the log")


def process_id(_task: int) -> int:
    return os.getpid()
