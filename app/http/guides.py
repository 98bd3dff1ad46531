"""The pages of `docs/` as HTML, and an overview of the documentation for language models (`/llms.txt`)."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import mistune

from app.config import ROOT
from app.http.openapi import INTRODUCTION, described_operations
from app.http.requests import public_path

GUIDES = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}


@dataclass(frozen=True, slots=True)
class Guide:
    """A page of `docs/`: its title, its first sentence, and all of it as HTML."""

    name: str
    title: str
    summary: str
    html: str


class _Renderer(mistune.HTMLRenderer):
    """Gives headings an id, lets the keyboard scroll code, and leads links between the pages to their HTML."""

    def __init__(self, url_prefix: str) -> None:
        super().__init__(escape=True)
        self.url_prefix = url_prefix

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        return super().block_code(code, info).replace("<pre>", '<pre tabindex="0">', 1)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        name, _, fragment = url.partition("#")
        if name.removesuffix(".md") in GUIDES:
            url = f"/docs/guides/{name.removesuffix('.md')}" + (f"#{fragment}" if fragment else "")
        if url.startswith("/"):
            url = self.url_prefix + url
        return super().link(text, url, title)


def read_guide(name: str) -> Guide:
    """Return a guide, rendered on first use. Raises KeyError for an unknown name."""
    return _render(name, public_path(""))


@cache
def _render(name: str, url_prefix: str) -> Guide:
    text = GUIDES[name].read_text(encoding="utf-8")
    title, _, content = text.removeprefix("# ").partition("\n")
    summary = " ".join(content.strip().partition("\n\n")[0].split())
    html = mistune.create_markdown(renderer=_Renderer(url_prefix), plugins=["table"])(text)
    return Guide(name, title, re.split(r"(?<=[.:]) ", summary)[0].rstrip(":"), str(html))


def llms_text() -> str:
    """Return the overview in the format of llmstxt.org."""
    guides = [read_guide(name) for name in GUIDES]
    return "\n".join(
        [
            "# Order Service",
            "",
            *(f"> {line}" for line in INTRODUCTION.partition("\n\n")[0].splitlines()),
            "",
            "## Documentation",
            "",
            f"- [API description]({public_path('/openapi.json')}): OpenAPI 3.1, with recorded examples",
            f"- [Collection]({public_path('/docs/collection.json')}): the requests for Postman, Bruno and newman",
            f"- [Problem types]({public_path('/problems')}): what each error means, and what to do",
            "",
            "## Guides",
            "",
            *(f"- [{guide.title}]({public_path(f'/docs/guides/{guide.name}')}): {guide.summary}" for guide in guides),
            "",
            "## Operations",
            "",
            *(f"- `{method} {path}`: {summary}" for method, path, summary in described_operations()),
            "",
        ]
    )
