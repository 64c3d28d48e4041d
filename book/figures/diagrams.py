"""The way of the data, and the two ways of sending a gradient through a sampler."""

from svg import ACCENT, FEMALE, GREY, INK, MALE, Sheet

SAND = "#fdf1e6"


def way():
    """From scans to a comparison before and after tuning."""
    sheet = Sheet(
        440, 668, "The way of the data, from scans to a comparison before and after tuning"
    )
    sheet.label(20, 14, 190, 52, "BraTS layout:\nscans + clinical table")
    sheet.label(230, 14, 190, 52, "ROCO layout:\nimages + captions")
    sheet.arrow(115, 66, 115, 92)
    sheet.arrow(325, 66, 325, 92)
    sheet.label(20, 94, 190, 52, "target cohort,\nsplit by subject", "#e4f1f1", ACCENT)
    sheet.label(230, 94, 190, 52, "training set,\n80 % male", "#e4f1f1", ACCENT)
    _evaluators(sheet)
    _loop(sheet)
    return sheet


def _evaluators(sheet):
    sheet.arrow(325, 146, 325, 304)
    sheet.arrow(115, 146, 115, 172)
    sheet.box(20, 174, 190, 100, fill="#ffffff")
    for row, (words, colour) in enumerate(
        [
            ("tuning classifier", FEMALE),
            ("held-out classifier", MALE),
            ("anatomical measurement", INK),
        ]
    ):
        sheet.dot(40, 193 + row * 31, 5, colour)
        sheet.text(52, 198 + row * 31, words, 13.5, anchor="start")


def _loop(sheet):
    sheet.label(230, 306, 190, 52, "base generator,\nfrozen text encoder", "#e4f1f1", ACCENT)
    sheet.arrow(325, 358, 325, 386)
    sheet.label(230, 388, 190, 52, "sample: neutral\nprompts, noise kept")
    sheet.arrow(325, 440, 325, 468)
    sheet.label(230, 470, 190, 52, "tune toward\nthe target", SAND, FEMALE)
    sheet.arrow(325, 522, 325, 550)
    sheet.label(230, 552, 190, 52, "sample again,\nthe same noise")
    sheet.label(20, 388, 170, 52, "measure: before")
    sheet.label(20, 552, 170, 52, "measure: after")
    sheet.arrow(230, 414, 192, 414)
    sheet.arrow(230, 578, 192, 578)
    sheet.arrow(70, 274, 70, 386, MALE)
    sheet.add(
        "polyline",
        points="170,274 170,300 210,300 210,496 220,496",
        fill="none",
        stroke=FEMALE,
        stroke_width=1.8,
    )
    sheet.arrow(214, 496, 229, 496, FEMALE)
    sheet.line(105, 440, 105, 552, GREY, 1.5, "4 4")
    sheet.label(20, 622, 400, 36, "compare: all evaluators, intervals, images", "#ffffff", INK)
    sheet.arrow(105, 604, 105, 621)


def _chain(sheet, y, fill, stroke, dash=None):
    """x_T, three denoising steps and x_0 on one line."""
    for k, name in enumerate(["x_T", "\u03b5", "\u03b5", "\u03b5", "x_0"]):
        x = 14 + k * 84
        inner = 0 < k < 4
        sheet.label(x, y, 58, 44, name, fill if inner else "#ffffff", stroke if inner else GREY, 17)
        if k < 4:
            sheet.arrow(x + 58, y + 16, x + 83, y + 16, INK, dash=dash)


def _through(sheet):
    sheet.text(14, 26, "Back-propagation through the chain", 16, weight="bold", anchor="start")
    _chain(sheet, 46, SAND, FEMALE)
    for k in range(4):
        sheet.arrow(14 + (k + 1) * 84 - 1, 80, 14 + k * 84 + 59, 80, FEMALE)
    sheet.label(14, 108, 394, 30, "every step's activations are held at once", SAND, FEMALE, 14)
    sheet.text(14, 160, "Memory grows with the number of steps.", 14, GREY, "start")


def _replay(sheet):
    sheet.line(14, 180, 408, 180, GREY, 1)
    sheet.text(14, 208, "Replay", 16, weight="bold", anchor="start")
    sheet.text(14, 232, "1  sample once, no gradient; keep each x_t (small)", 14, anchor="start")
    _chain(sheet, 244, "#ffffff", GREY, "4 3")
    sheet.text(14, 318, "2  one gradient of the loss at the end, g = dL/dx_0", 14, anchor="start")
    sheet.label(350, 328, 58, 34, "g", "#e4f1f1", ACCENT, 17)
    sheet.text(14, 390, "3  then one step at a time, in any order:", 14, anchor="start")
    for k in range(3):
        y = 402 + k * 44
        sheet.label(14, y, 44, 34, "x_t", "#ffffff", GREY, 15)
        sheet.arrow(58, y + 17, 96, y + 17)
        sheet.label(
            98,
            y,
            44,
            34,
            "\u03b5",
            "#e4f1f1" if k == 1 else "#ffffff",
            ACCENT if k == 1 else GREY,
            17,
        )
        sheet.arrow(
            406, y + 17, 144, y + 17, ACCENT if k == 1 else GREY, dash=None if k == 1 else "4 4"
        )
        sheet.text(275, y + 11, "c_t \u00d7 g", 15, ACCENT if k == 1 else GREY)
    sheet.text(
        14,
        554,
        "One step's activations at a time, whatever the number of steps;",
        14,
        GREY,
        "start",
    )
    sheet.text(14, 574, "some of the steps, well chosen, will do.", 14, GREY, "start")


def replay():
    """Two ways to send a gradient through a sampler."""
    sheet = Sheet(
        422,
        590,
        "Back-propagation through the chain holds all activations; replay holds those of one step",
    )
    _through(sheet)
    _replay(sheet)
    return sheet


DRAWINGS = {"way.svg": way, "replay.svg": replay}
