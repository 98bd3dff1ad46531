"""Searching orders over HTTP: what is found by which words, filters, sorts, facets, pages."""

from flask import Flask
from flask.testing import FlaskClient

from tests.support.samples import RICHEST
from tests.support.search import project, search


def test_an_order_is_found_after_the_worker_has_projected_it(app: Flask, client: FlaskClient) -> None:
    order = client.post("/orders", json=RICHEST).json
    before = search(client)
    project(app)

    after = search(client)

    assert (before["orders"], before["as_of_seq"], before["behind"]) == ([], 0, 0)
    assert (after["orders"], after["as_of_seq"], after["behind"]) == ([order], 1, 0)
    assert after["next_cursor"] is None and "facets" not in after
