"""HTML as values: elements that escape whatever text enters them. Knows nothing of searches."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: #fff; color: #1a1a1a; font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid #ddd; font-size: 1.2rem; }
p, dd { overflow-wrap: anywhere; }
.verdict { margin: 1.5rem 0 .5rem; font-size: 1.6rem; line-height: 1.3; font-weight: 600; color: #0b6e4f; }
.verdict.nothing { color: #7c4a03; }
.plainly { font-size: 1.1rem; }
.note { color: #555; font-size: .9rem; }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .3rem 1rem; margin: 1.5rem 0; }
dt { color: #555; }
dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid #e5e5e5; text-align: left; vertical-align: top; }
th { color: #555; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, .whole { white-space: nowrap; }
code, pre { font: .9em ui-monospace, monospace; }
pre { padding: .7rem; background: #f4f4f4; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow-x: auto; }
img { min-width: 38rem; max-width: 100%; height: auto; }
a { color: #0b6e4f; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print {
  html { font-size: 11px; }
  body { max-width: none; padding: 0; }
  .wide, figure { overflow: visible; }
  h2 { break-after: avoid; }
  figure, tr, dl, pre { break-inside: avoid; }
  img { min-width: 0; max-height: 22cm; }
}
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """A piece of HTML. Any other text is escaped where it enters an element."""

    __slots__ = ()


def element(name: str, *content: object, **attributes: str) -> Markup:
    """``<name attributes>content</name>``; ``class_`` stands for the attribute class."""
    return Markup(f"<{name}{_attributes(attributes)}>{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """Pieces and texts, one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else escape(str(part)) for part in content))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[str] = ()) -> Markup:
    """A table that scrolls by itself where the page is narrow; columns named in ``numbers`` are set to the right."""
    kinds = [{"class_": "number"} if column in numbers else {} for column in head]
    top = element("tr", *(element("th", column, scope="col", **kind) for column, kind in zip(head, kinds, strict=True)))
    body = [element("tr", *(element("td", cell, **kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return element(
        "div", element("table", element("thead", top), "\n", element("tbody", *(join(row, "\n") for row in body))), class_="wide"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Names, each with what is to say of it."""
    return element("dl", *(join(element("dt", name), element("dd", fact), "\n") for name, fact in pairs))


def picture(png: bytes, alt: str) -> Markup:
    """A picture inside the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return element("figure", Markup(f"<img{_attributes({'src': source, 'alt': alt})}>"))


def document(title: str, *body: object) -> str:
    """A whole page that fetches nothing and runs nothing. ASCII, so that no locale can spoil it."""
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', title)}\n<style>{STYLE}</style>"
    )
    content = element("body", *(join(part, "\n") for part in body))
    page = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n{content}\n</html>\n'
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _attributes(attributes: dict[str, str]) -> str:
    return "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
