"""Settings of the documentation. `.ci/docs` builds it.

The repository's root is the source folder. So pages written for it (READMEs, results, notebooks)
keep their places, and the links between them hold.
"""

import functools
import inspect
import pathlib
import sys
from typing import Any, TypeVar

from sphinx import addnodes

import sinkflow

project = "sinkflow"
version = release = sinkflow.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_nb"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    ".github/*.md",
    "docs/**.md",
    "docs/**.rst",
    "experiments/*.md",
    "experiments/results/*.md",
    "notebooks/*.ipynb",
    "sinkflow/*.md",
]
exclude_patterns = [".venv*", "build", "runs"]

html_theme = "furo"
html_title = f"sinkflow {version}"
html_copy_source = False
html_show_sourcelink = False
# The site's first address leads to the overview; the live page lies beside it, to be opened.
html_extra_path = ["root", "../notebooks/transport.html"]

# Notebooks are shown as they are committed; the tests execute them.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3

# Docstrings have sections of their own beside Args, Returns, Raises and Example.
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    "Errors",
    "Numerics",
    "Returns",  # in words: their types are in the signature
    "Source",
    ("Attributes", "params_style"),
]
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__",
}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80

OTHERS = (
    "Array",
    "DTypeLike",
    "collections",
    "flax",
    "jax",
    "jaxlib",
    "jaxtyping",
    "matplotlib",
    "ndarray",
    "numpy",
    "os",
    "optax",
    "pathlib",
    "typing",
)
# A reference to a name of sinkflow that leads nowhere fails the build; other libraries' do not.
nitpicky = True
nitpick_ignore_regex = [("py:.*", rf"({'|'.join(OTHERS)})\b.*")]
# What autodoc writes in signatures, and how it is shown.
ALIASES = {
    "float | int | ~numpy.ndarray | ~numpy.number | ~jax.Array": "~sinkflow.types.ScalarLike",
    "str | type[~typing.Any] | ~numpy.dtype | ~jax._src.typing.SupportsDType": "DTypeLike",
    "<class 'jax.numpy.bfloat16'>": "jax.numpy.bfloat16",
}


def setup(app: Any) -> None:
    app.connect("source-read", with_heading)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", readable)
    app.connect("missing-reference", through_the_face)
    app.connect("doctree-read", folders_as_text)


def with_heading(app, docname, source):
    """Gives the tables that drivers write their file's name as a heading."""
    if docname.startswith("experiments/results/") and not source[0].startswith("#"):
        source[0] = f"# {docname.rpartition('/')[2]}\n\n{source[0]}"


def skip_fields(app, what, name, member, skip, options):
    """Leaves out what the signature of a class shows: fields of named tuples, and dtypes."""
    return True if type(member).__name__ == "_tuplegetter" or name == "dtype" else None


def through_the_face(app, env, node, contnode):
    """Follows a reference by the name that users write to where the object is documented.

    A type variable has no such place, and is shown as its name.
    """
    module, _, last = node.get("reftarget", "").rpartition(".")
    if isinstance(getattr(sys.modules.get(module), last, None), TypeVar):
        return contnode
    package, *names = node.get("reftarget", "").split(".")
    if package != "sinkflow":
        return None
    value = functools.reduce(lambda value, name: getattr(value, name, None), names, sinkflow)
    target = getattr(value, "__name__", "")
    if not inspect.ismodule(value):
        target = f"{getattr(value, '__module__', '')}.{target}"
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, contnode
    )


def readable(app, what, name, obj, options, signature, returns):
    """Unions by their names, and modules without the two arguments that all of them have."""

    def shown(text):
        for written, alias in ALIASES.items():
            text = text and text.replace(written, alias)
        return text

    if signature and ", parent: " in signature:
        signature = signature.partition(", parent: ")[0] + ")"
    return shown(signature), shown(returns)


def folders_as_text(app, doctree):
    """Shows a link to a folder of the repository as its text: the site has no page for it."""
    here = pathlib.Path(doctree["source"]).parent
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node["reftype"] == "myst" and (here / node["reftarget"]).is_dir():
            node.replace_self(node.children)
