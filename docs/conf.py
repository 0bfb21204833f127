"""How Sphinx builds the site: ``make docs``, offline, with warnings as errors."""

import os

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lc_callback

project = "lc_callback"
author = "the lc_callback authors"
copyright = f"2026, {author}"  # noqa: A001
release = version = lc_callback.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_ambiguous"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_labels = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"lc_callback {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"  # MathJax would be fetched from another host


def formula(writer, node):
    """A formula as MathML, which browsers draw by themselves."""
    tex = node.astext().replace(r"\dots", r"\ldots")
    writer.body.append(tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
