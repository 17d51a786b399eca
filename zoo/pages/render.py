"""Renders self-contained HTML pages from Jinja templates.

Each package with pages has a folder `templates`. The templates extend `base.html` and import the
macros of `elements.html`, both in `zoo/pages/templates/`.
"""

import datetime
from pathlib import Path

from zoo.storage.disk import atomic


def write_page(path: Path, package: str, template: str, **values) -> None:
    """Renders a template and writes the page atomically.

    Every value is escaped. A name without a value in the template is an error.

    Args:
      path: file to write. Characters that UTF-8 cannot encode are written as "?".
      package: package that contains the template, such as "trainers.report".
      template: file name in the package's folder `templates`.
      **values: values for the template, in addition to `now`, the local time.
    """
    import jinja2  # at the top of the file it would slow down `zoo list` and `zoo --help`

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
