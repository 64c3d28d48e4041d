"""What Jupyter Book cannot be told through its configuration file.

Three things: serve the vendored scripts and our style sheet, drop the one script of the theme that names another
host, and refuse a picture without alternative text (a warning, which the build turns into an error).
"""
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
PICTURES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")
BOOK = Path(__file__).resolve().parents[1]


def add_static_folders(app, config):
    """Serve book/vendor and book/css.

    Done here and not through a `_static` folder, because Jupyter Book loads every script that it finds in one
    on every page.
    """
    config.html_static_path += [str(BOOK / "vendor"), str(BOOK / "css")]


def name_beside_logo(app, config):
    """Show the title beside the logo; Jupyter Book's own key would replace all theme options."""
    config.html_theme_options["logo"] = {"text": config.html_title, "alt_text": ""}


def drop_thebe(app, pagename, templatename, context, doctree):
    """Take out sphinx-thebe, which cannot be switched off and whose address is on another host."""
    context["script_files"] = [s for s in context.get("script_files", []) if not _is_thebe(s)]


def _is_thebe(script):
    body = (getattr(script, "attributes", None) or {}).get("body") or ""
    return "THEBE_JS_URL" in body or "sphinx-thebe.js" in str(getattr(script, "filename", script))


def speechless(alt):
    """True where `alt` tells a blind reader nothing: empty, a path, or a bare file name."""
    text = (alt or "").strip()
    return not text or text.lower().endswith(PICTURES) or " " not in text


def require_alt(app, doctree):
    """Warn of every picture whose alternative text says nothing."""
    for image in doctree.findall(nodes.image):
        if speechless(image.get("alt")):
            logger.warning("picture without alternative text: %s", image.get("uri"), location=image, type="book")


def setup(app):
    app.connect("config-inited", add_static_folders)
    app.connect("config-inited", name_beside_logo)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("doctree-read", require_alt)
    app.add_css_file("book.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
