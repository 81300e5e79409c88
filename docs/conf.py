"""Sphinx configuration. Build with ``python docs/build.py``; ``pages.py`` writes what follows from sources."""

import pkgutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import kqeq  # noqa: E402
from pages import write_pages  # noqa: E402

project = "kqeq"
author = "the kqeq developers"
project_copyright = author
version = release = kqeq.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "generated", "README.md"]
root_doc = "index"

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"version": version}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types, with shapes and units
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# types in numpydoc sections are words such as "(N, 3) array"; everything written as a role is checked
nitpick_ignore_regex = [("py:class", r".*"), ("py:exc", r".*")]
# inherited docstrings that refer to a sibling; private limits that a docstring names
nitpick_ignore = [("py:meth", "check"), ("py:data", "kqeq.charges.parameters.SPREADS")]
# modules that exist may be referred to without a page of their own; those that do not exist are still found
nitpick_ignore += [("py:mod", module.name) for module in pkgutil.walk_packages(kqeq.__path__, "kqeq.")]

html_theme = "furo"
html_title = f"kqeq {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["kqeq.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}

write_pages(HERE)
