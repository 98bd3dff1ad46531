"""The pages of the documentation: guides, problem types and the overview for language models."""

import re

import pytest
from flask.testing import FlaskClient

from app.errors import problem_types
from app.routes.service_routes import GUIDES
from tests.support.description import api_description
from tests.support.samples import slug

PAGES = ["/docs", "/docs/guides", "/problems", *(f"/docs/guides/{name}" for name in GUIDES)]


@pytest.mark.parametrize("path", PAGES)
def test_every_address_on_a_page_exists(client: FlaskClient, path: str) -> None:
    page = client.get(path).text

    addresses = set(re.findall(r'(?:src|href)="(/[^"#]*)', page))
    assert addresses >= {"/docs", "/docs/guides", "/problems", "/docs/pages.css"}
    for address in addresses:
        assert client.get(address, buffered=True).status_code == 200, address


def test_the_policy_of_a_page_forbids_inline_scripts_and_styles(client: FlaskClient) -> None:
    for path in PAGES:
        response = client.get(path)
        assert "unsafe-inline" not in response.headers["Content-Security-Policy"]
        assert not re.search(r"<script>|<style|style=", response.text), path


def test_a_guide_is_rendered_from_its_markdown(client: FlaskClient) -> None:
    page = client.get("/docs/guides/webhooks").text

    assert '<h1 id="webhooks">Webhooks</h1>' in page
    assert "<title>Webhooks" in page
    assert 'class="language-python"' in page
    assert client.get("/docs/guides/webhooks").headers["ETag"]
    assert slug(client.get("/docs/guides/nothing")) == (404, "not-found")


def test_the_page_of_a_problem_shows_its_cause_its_solution_and_an_example(client: FlaskClient) -> None:
    for kind in problem_types():
        page = client.get(f"/problems/{kind.slug}").text
        assert all(f"<h2>{heading}</h2>" in page for heading in ("Cause", "What to do", "Example"))
        assert f"&#34;type&#34;: &#34;/problems/{kind.slug}&#34;" in page
        cause, _, solution = (kind.__doc__ or "").partition("\n\n")
        assert cause.strip() and solution.strip(), kind


def test_the_overview_for_language_models_links_to_all_of_the_documentation(client: FlaskClient) -> None:
    response = client.get("/llms.txt")

    assert response.mimetype == "text/plain"
    assert response.text.startswith("# Order Service\n\n> ")
    for address in re.findall(r"\]\((/[^)]*)\)", response.text):
        assert client.get(address).status_code == 200, address
    for name in GUIDES:
        assert f"(/docs/guides/{name})" in response.text
    for path, item in api_description(client)["paths"].items():
        for method in item.keys() - {"parameters"}:
            assert f"- `{method.upper()} {path}`: " in response.text
