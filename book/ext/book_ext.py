"""What Jupyter Book cannot be told through its configuration file.

It serves the vendored scripts and our style sheet, drops the one script of the theme that names
another host, lets widgets typeset through MathJax 3, and refuses an image without alternative text
(a warning, which the build turns into an error). It also adds the directive of the API page.
"""

from pathlib import Path

from api_page import Api  # beside this file, which Jupyter Book finds through its folder
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")
BOOK = Path(__file__).resolve().parents[1]

# The widget script calls MathJax as version 2 was called; without this a page with a formula and a
# slider breaks.
MATHJAX_2 = """
document.addEventListener("DOMContentLoaded", () => {
  const typeset = node => window.MathJax.startup && MathJax.startup.promise.then(() => MathJax.typesetPromise([node]));
  if (window.MathJax) MathJax.Hub = {Queue: command => typeset(command[2])};
});
"""


def add_static_folders(app, config):
    """Serve book/vendor and book/css.

    Done here and not through a `_static` folder, because Jupyter Book loads every script that it
    finds in one on every page.
    """
    config.html_static_path += [str(BOOK / "vendor"), str(BOOK / "css")]


def set_theme_options(app, config):
    """Title beside the logo, one search box; Jupyter Book's own key would replace all its other
    theme options.
    """
    config.html_theme_options["logo"] = {"text": config.html_title, "alt_text": ""}
    config.html_theme_options["navbar_persistent"] = []


def drop_thebe(app, pagename, templatename, context, doctree):
    """Take out sphinx-thebe, which cannot be switched off and whose address is on another host."""
    for kind in ("script_files", "css_files"):
        context[kind] = [asset for asset in context.get(kind, []) if not _is_thebe(asset)]


def _is_thebe(asset):
    body = (getattr(asset, "attributes", None) or {}).get("body") or ""
    return "THEBE_JS_URL" in body or "sphinx-thebe." in str(getattr(asset, "filename", asset))


def speechless(alt):
    """True where `alt` tells a blind reader nothing: empty, a path, or a bare file name."""
    text = (alt or "").strip()
    return not text or text.lower().endswith(IMAGES) or " " not in text


def require_alt(app, doctree):
    """Warn of every image whose alternative text says nothing."""
    for image in doctree.findall(nodes.image):
        if speechless(image.get("alt")):
            logger.warning(
                "image without alternative text: %s",
                image.get("uri"),
                location=image,
                type="book",
            )


def setup(app):
    app.connect("config-inited", add_static_folders)
    app.connect("config-inited", set_theme_options)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("doctree-read", require_alt)
    app.add_directive("api", Api)
    app.add_css_file("book.css")
    app.add_js_file(None, body=MATHJAX_2)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
