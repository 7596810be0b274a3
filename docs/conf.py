"""Configuration of the documentation site: `python -m sphinx -W -b html docs docs/_build/html`."""

import inspect
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Both autodoc and the notebooks' kernel import the packages of this clone, installed or not.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

project = "brainslices"
author = "the brainslices authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
html_title = "brainslices"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "images/README.md"]
templates_path = ["_templates"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["brainslices.css"]
html_theme_options = {"sidebar_hide_name": False}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_timeout = 1200
nb_execution_in_temp = True
nb_execution_raise_on_error = True
# A training prints a line for each epoch: one box, not one for each line.
nb_merge_streams = True
# Progress lines and the backends' log messages.
nb_output_stderr = "remove"

# Docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
# Keras and TensorFlow Probability write Markdown.
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# TensorFlow Probability copies these two methods, in Markdown, into its subclasses.
autodoc_default_options = {"members": True, "exclude-members": "cross_entropy, kl_divergence"}
# Of the extra studio, which is not installed everywhere.
autodoc_mock_imports = ["gradio", "starlette"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Call arguments", "params_style"), ("Reference", "References")]

# autosummary writes a page for each module; one of a module that was removed would not build.
for page in (ROOT / "docs" / "api" / "modules").glob("*.rst"):
    module = ROOT / page.stem.replace(".", "/")
    if not module.is_dir() and not module.with_suffix(".py").is_file():
        page.unlink()


def escape_markup(app, what, name, obj, options, lines):
    """Keep |z| and *args in docstrings literal: outside of backticks they are no markup."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[number] = re.sub(r"(`[^`]*`)|([|*])", lambda m: m[1] or "\\" + m[2], line)
    if what == "attribute":
        # In its first line napoleon takes what precedes a colon for the type.
        lines.insert(0, "")


def show_constructor(app, what, name, obj, options, signature, return_annotation):
    """Show the arguments of Keras classes, whose `__new__` takes anything."""
    if what == "class" and signature == "(*args, **kwargs)":
        _, *others = inspect.signature(obj.__init__).parameters.values()
        plain = [each.replace(annotation=inspect.Parameter.empty) for each in others]
        return str(inspect.Signature(plain)), return_annotation
    return None


def setup(app):
    # Before napoleon (500), which adds markup of its own.
    app.connect("autodoc-process-docstring", escape_markup, priority=400)
    app.connect("autodoc-process-signature", show_constructor)
