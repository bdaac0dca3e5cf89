"""The documentation as a site: `make docs` builds it into build/docs, with warnings as errors.

What can be made from the code is (options, commands, the Python library), and the REST API from docs/openapi.json: to
change such a page, change its source. Nothing is fetched, and no history of git is needed.
"""

import logging
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import raksha  # noqa: E402

project = "Raksha"
copyright = "The Raksha authors, Apache-2.0"
author = "The Raksha authors"
version = release = raksha.__version__

extensions = [
    "myst_parser",
    "openstackdocstheme",
    "sphinx.ext.autodoc",
    "oslo_config.sphinxext",
    "cliff.sphinxext",
    "sphinxcontrib.autoprogram",
    "programs",
    "rest_api",
]
exclude_patterns = ["_ext"]
language = "en"
nitpicky = True

# so that a link to a heading of another document is checked
myst_heading_anchors = 4
# the domain of oslo.config breaks down over a link that leads nowhere, in the place of saying so
myst_ref_domains = ["std", "py"]
# in diagrams and in what is shown of a terminal there is nothing to colour
highlight_language = "none"

autoprogram_cliff_application = "raksha"

html_theme = "openstackdocs"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["raksha.css"]
# the name of a repository below opendev.org, and where its bugs are, are not known to the theme
openstackdocs_auto_name = False
openstackdocs_auto_version = False
html_last_updated_fmt = None

# records: a field says what it is where it stands
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# in types of the library: what Python's own documentation has, what is private, what Sphinx takes apart
nitpick_ignore_regex = [
    ("py:class", r"(datetime|collections\.abc|raksha\.client\.transport)\..*"),
    ("py:class", r"raksha\.client\.records\.T"),
    ("py:class", r"(dict|tuple)\[.*"),
]


def setup(app: Any) -> None:
    app.connect("source-read", _inside)
    # the theme warns where there is no history to name a commit of, and warnings are errors
    logging.getLogger("sphinx.openstackdocstheme.ext").addFilter(lambda record: "gitsha" not in str(record.msg))


def _inside(_app: Any, _name: str, source: list[str]) -> None:
    """Links of documents that lead out of docs/, where their place here is another one."""
    source[0] = source[0].replace("](../CONTRIBUTING.md)", "](contributor/contributing.md)")
