"""Event streams while the database is unavailable: they stay open, and continue."""

import time
from pathlib import Path

import psycopg

from tests.support.databases import ORDER, gunicorn, migrated, point_link_at, url_through, wait_until_ready
from tests.support.event_streams import open_stream
from tests.support.postgres import libpq_url, private_postgres
from tests.support.servers import running_worker

END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'order-service'"


def test_streams_stay_open_while_the_database_is_unavailable(tmp_path: Path) -> None:
    link = tmp_path / ".s.PGSQL.5432"
    with private_postgres() as url:
        migrated(url)
        point_link_at(url, link)
        with gunicorn(url_through(link), AUTH="off") as server, running_worker(DATABASE_URL=url):
            order = server.request("POST", "/orders", ORDER).headers["Location"]
            with open_stream(server.port, f"{order}/events") as of_order, open_stream(server.port, "/events") as of_all:
                assert next(of_order).type == next(of_all).type == "order.created"
                link.unlink()
                with psycopg.connect(libpq_url(url), autocommit=True) as connection:
                    connection.execute(END_CONNECTIONS)
                assert server.request("GET", order).status == 503
                time.sleep(2)
                point_link_at(url, link)
                wait_until_ready(server)
                server.request("POST", f"{order}/confirm")

                assert next(of_order).type == next(of_all).type == "order.confirmed"
