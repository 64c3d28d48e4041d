"""A sheet of SVG, written by hand so that the drawings need no library and come out the same byte
for byte.
"""

import re
from xml.sax.saxutils import escape

INK, GREY, PALE, PAPER = "#1f2933", "#6b7780", "#eef2f4", "#ffffff"
# Okabe-Ito orange and blue; never red against green
FEMALE, MALE, ACCENT = "#d55e00", "#0072b2", "#0b6e6e"
FONT = "Lato, 'Segoe UI', Helvetica, Arial, sans-serif"


class Sheet:
    """A drawing of `width` x `height` user units; `title` is its name for a screen reader."""

    def __init__(self, width, height, title, ground=PAPER):
        self.width, self.height, self.title, self.ground = width, height, title, ground
        self.parts = []

    def add(self, name, text=None, **attributes):
        """Add one element; underscores in attribute names become hyphens."""
        given = "".join(
            f' {key.replace("_", "-")}="{_short(value)}"' for key, value in attributes.items()
        )
        self.parts.append(
            f"<{name}{given}/>" if text is None else f"<{name}{given}>{text}</{name}>"
        )

    def box(self, x, y, w, h, fill=PALE, stroke=GREY, radius=8, **more):
        self.add(
            "rect",
            x=x,
            y=y,
            width=w,
            height=h,
            rx=radius,
            fill=fill,
            stroke=stroke,
            stroke_width=1.5,
            **more,
        )

    def text(
        self, x, y, words, size=15, fill=INK, anchor="middle", weight="normal", style="normal"
    ):
        """Write `words` with the first base line at `y`; a newline starts a line, x_t gets its
        subscript.
        """
        for row, line in enumerate(words.split("\n")):
            self.add(
                "text",
                _subscripts(escape(line), size),
                x=x,
                y=y + row * size * 1.3,
                font_family=FONT,
                font_size=size,
                fill=fill,
                text_anchor=anchor,
                font_weight=weight,
                font_style=style,
            )

    def label(self, x, y, w, h, words, fill=PALE, stroke=GREY, size=15, ink=INK, weight="normal"):
        """A box with its words in the middle."""
        self.box(x, y, w, h, fill, stroke)
        rows = words.count("\n") + 1
        self.text(
            x + w / 2,
            y + h / 2 + size * 0.35 - (rows - 1) * size * 0.65,
            words,
            size,
            ink,
            weight=weight,
        )

    def line(self, x1, y1, x2, y2, stroke=INK, width=1.5, dash=None):
        more = {"stroke_dasharray": dash} if dash else {}
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, **more)

    def arrow(self, x1, y1, x2, y2, stroke=INK, width=1.8, dash=None, head=8):
        """A straight arrow from (x1, y1) to (x2, y2)."""
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        ux, uy = (x2 - x1) / length, (y2 - y1) / length
        bx, by = x2 - ux * head, y2 - uy * head
        self.line(x1, y1, bx, by, stroke, width, dash)
        corners = [
            (x2, y2),
            (bx - uy * head / 2, by + ux * head / 2),
            (bx + uy * head / 2, by - ux * head / 2),
        ]
        self.add(
            "polygon",
            points=" ".join(f"{_short(px)},{_short(py)}" for px, py in corners),
            fill=stroke,
        )

    def dot(self, x, y, r=4, fill=INK, stroke="none"):
        self.add("circle", cx=x, cy=y, r=r, fill=fill, stroke=stroke)

    def ellipse(self, cx, cy, rx, ry, fill, **more):
        self.add("ellipse", cx=cx, cy=cy, rx=rx, ry=ry, fill=fill, **more)

    def render(self):
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" fill="{self.ground}"/>'
        return "\n".join(
            [head, f"<title>{escape(self.title)}</title>", ground, *self.parts, "</svg>", ""]
        )


def _subscripts(words, size):
    low = f'<tspan dy="{_short(size * 0.25)}" font-size="{_short(size * 0.72)}">'
    back = f'<tspan dy="-{_short(size * 0.25)}">&#8203;</tspan>'
    return re.sub(r"_(\w)", lambda found: f"{low}{found[1]}</tspan>{back}", words)


def _short(value):
    """Numbers with at most two decimals, so that the files do not depend on the last bit of a
    float.
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
