"""Renders self-contained HTML pages from Jinja templates.

A package that has pages keeps their templates in a folder `templates` of its own. They extend
`base.html` and import the macros of `elements.html`, both in `zoo/pages/templates/`.
"""

import datetime
from pathlib import Path

from zoo.storage.disk import atomic


def write_page(path: Path, package: str, template: str, **values) -> None:
    """Renders a template and writes the page atomically.

    Every value is escaped, and a name that the template uses but does not get is an error.

    Args:
      path: file to write. Characters that UTF-8 cannot encode are written as "?".
      package: package that holds the template, such as "trainers.report".
      template: file name in the package's folder `templates`.
      **values: what the template draws, next to `now`, the local time.
    """
    import jinja2  # only where a page is drawn: it would slow down `zoo list` and `zoo --help`

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, __package__)]),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(values, now=datetime.datetime.now())
    with atomic(path) as file:
        file.write(page.encode("utf-8", "replace"))
