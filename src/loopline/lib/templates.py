"""HTML from templates. All values are escaped, so that a name or a text in the data is never markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def render(template: Path, **values: Any) -> str:
    """Fill in a Jinja template, which may include files of its folder. A name without a value is an error.

    The filter `code` turns the words between backticks into <code> elements.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def code(words: str) -> Markup:
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words)))  # noqa: S704 - escaped before

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = code
    return environment.get_template(template.name).render(values) + "\n"
