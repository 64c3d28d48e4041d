"""Schematic brains: the phantom's six steps, the logo and the favicon."""

from svg import FEMALE, MALE, Sheet

TISSUE = {"template": ("#8d979e", "#d9dee1", "#2b2f33"), "flair": ("#a9a9a9", "#7f7f7f", "#1d1d1d")}


def brain(sheet, cx, cy, rx, ry, tissue="template", ventricle=1.0, tilt=0.0):
    """An axial slice: grey matter, white matter, ventricles, the gap between the hemispheres."""
    grey, white, fluid = TISSUE[tissue]
    turn = {"transform": f"rotate({tilt} {cx} {cy})"} if tilt else {}
    sheet.ellipse(cx, cy, rx, ry, grey, **turn)
    for side in (-1, 1):
        sheet.ellipse(cx + side * rx * 0.42, cy, rx * 0.40, ry * 0.76, white, **turn)
        sheet.ellipse(
            cx + side * rx * 0.15 * ventricle,
            cy - ry * 0.06,
            rx * 0.11 * ventricle,
            ry * 0.26,
            fluid,
            **turn,
        )
    sheet.line(cx, cy - ry, cx, cy - ry * 0.45, fluid, 2)
    sheet.line(cx, cy + ry * 0.45, cx, cy + ry, fluid, 2)


def panel(sheet, column, row, words):
    """A dark square with a caption below; gives its middle."""
    x, y = 20 + column * 200, 16 + row * 214
    sheet.box(x, y, 180, 150, fill="#0b0d0f", stroke="#0b0d0f", radius=6)
    sheet.text(x + 90, y + 170, words, 14)
    return x + 90, y + 75


def _template(sheet):
    brain(sheet, *panel(sheet, 0, 0, "1  average brain (MNI152):\ntissue maps"), 50, 62)


def _warp(sheet):
    cx, cy = panel(sheet, 1, 0, "2  smooth random warp:\na person of its own")
    brain(sheet, cx, cy, 47, 64, ventricle=1.25, tilt=4)
    for k in range(-2, 3):
        x, y = cx + k * 26, cy + k * 26
        sheet.add(
            "path",
            d=f"M {x} {cy - 68} q 9 34 0 68 q -9 34 0 68",
            fill="none",
            stroke="#56d0d0",
            stroke_width=1,
        )
        sheet.add(
            "path",
            d=f"M {cx - 68} {y} q 34 -9 68 0 q 34 9 68 0",
            fill="none",
            stroke="#56d0d0",
            stroke_width=1,
        )


def _scale(sheet):
    cx, cy = panel(sheet, 0, 1, "3  size drawn by sex,\neffect known exactly")
    brain(sheet, cx, cy, 46, 57)
    sheet.ellipse(cx, cy, 44, 55, "none", stroke=FEMALE, stroke_width=3)
    sheet.ellipse(cx, cy, 52, 64, "none", stroke=MALE, stroke_width=3, stroke_dasharray="7 4")
    sheet.text(cx - 80, cy - 56, "F", 15, FEMALE, "start", "bold")
    sheet.text(cx + 80, cy - 56, "M", 15, "#56b4e9", "end", "bold")


def _contrast(sheet):
    cx, cy = panel(sheet, 1, 1, "4  contrast per tissue:\nT1, T1ce, T2, FLAIR")
    brain(sheet, cx - 42, cy, 36, 46)
    brain(sheet, cx + 42, cy, 36, 46, tissue="flair")
    sheet.text(cx - 42, cy + 68, "T1", 13, "#ffffff")
    sheet.text(cx + 42, cy + 68, "FLAIR", 13, "#ffffff")


def _tumour(sheet):
    cx, cy = panel(sheet, 0, 2, "5  tumour: oedema, core, rim;\ngrade tied to sex as in BraTS")
    brain(sheet, cx, cy, 50, 62, tissue="flair")
    sheet.ellipse(cx + 22, cy - 18, 22, 24, "#e6e6e6", opacity=0.75)
    sheet.ellipse(cx + 22, cy - 18, 12, 13, "#3a3a3a", stroke="#ffffff", stroke_width=3)


def _scanner(sheet):
    cx, cy = panel(sheet, 1, 2, "6  bias field and noise;\nwritten as NIfTI, BraTS layout")
    brain(sheet, cx, cy, 50, 62, tissue="flair")
    sheet.ellipse(cx + 22, cy - 18, 22, 24, "#e6e6e6", opacity=0.75)
    sheet.ellipse(cx + 22, cy - 18, 12, 13, "#3a3a3a", stroke="#ffffff", stroke_width=3)
    state = 1
    for k in range(400):  # a fixed scatter, the same on every machine and every Python
        state = state * 16807 % 2147483647
        x, y = state % 173, state // 173 % 143
        sheet.dot(cx - 86 + x, cy - 71 + y, 0.8, "#ffffff" if k % 2 else "#000000")


def phantom():
    """How a phantom person is made."""
    sheet = Sheet(420, 656, "Six steps from an average brain to a phantom person's scan")
    for step in (_template, _warp, _scale, _contrast, _tumour, _scanner):
        step(sheet)
    return sheet


def _half(sheet, side, colour):
    sweep = 1 if side > 0 else 0
    sheet.add(
        "path", d=f"M {32 + side * 2} 6 A 24 27 0 0 {sweep} {32 + side * 2} 58 Z", fill=colour
    )
    sheet.ellipse(32 + side * 8, 31, 3.5, 9, "#ffffff", opacity=0.9)


def logo():
    """Two halves of one brain, on no ground, so that it stands on a light page and on a dark
    one.
    """
    sheet = Sheet(64, 64, "A brain of two halves", ground="none")
    _half(sheet, -1, MALE)
    _half(sheet, 1, FEMALE)
    return sheet


DRAWINGS = {"phantom.svg": phantom, "logo.svg": logo}
