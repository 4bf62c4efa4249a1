"""Pages from templates: HTML that needs nothing else."""

from pathlib import Path
from typing import Any

import jinja2

_FOLDER = Path(__file__).resolve().parent


def html(template: str, **values: Any) -> str:
    """Return a template of this folder with `values` filled in, and the style sheet as `style`.

    Raises jinja2.UndefinedError for a value that the template asks for and does not get.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **values)
