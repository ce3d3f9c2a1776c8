"""How Sphinx builds the site: `make docs`, warnings as errors, no request to another host."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "extensions"))

from hast_lightning import __version__  # noqa: E402  # the path comes first

project = "hast-lightning"
author = "The hast-lightning contributors"
copyright = "the hast-lightning contributors"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated_sections",
    "mathml",
]
exclude_patterns = ["extensions", "**.ipynb_checkpoints"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The notebook is executed by a test, and shows here what it showed then.
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "hast-lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "
