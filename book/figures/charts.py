"""Three small charts: who is in the cohort, what a classifier reads, where each kind of target
sends the images.
"""

from svg import FEMALE, GREY, INK, MALE, Sheet

COHORT = {"HGG": (63, 38), "LGG": (27, 38), "both": (90, 76)}  # male, female subjects of known sex
SENSITIVITY, SPECIFICITY, READ = 0.85, 0.90, 0.20  # the worked example of the chapter


def corrected(read, sensitivity=SENSITIVITY, specificity=SPECIFICITY):
    """Rogan and Gladen (1978): the share behind a reading."""
    return (read + specificity - 1) / (sensitivity + specificity - 1)


def confounding():
    """Subjects by grade and sex."""
    sheet = Sheet(
        420, 216, "Subjects of known sex in BraTS18, by grade: 63 male and 38 female, 27 and 38"
    )
    for row, (grade, (male, female)) in enumerate(COHORT.items()):
        y, scale = 20 + row * 56, 290 / (male + female)
        sheet.text(52, y + 26, grade, 16, anchor="end", weight="bold")
        sheet.box(62, y, male * scale, 40, MALE, "#ffffff", 0)
        sheet.box(62 + male * scale, y, female * scale, 40, FEMALE, "#ffffff", 0)
        sheet.text(62 + male * scale / 2, y + 26, f"{male} M", 16, "#ffffff", weight="bold")
        sheet.text(
            62 + (male + female / 2) * scale, y + 26, f"{female} F", 16, "#ffffff", weight="bold"
        )
        sheet.text(362, y + 26, f"{female / (male + female):.1%} F", 14, anchor="start")
    sheet.text(207, 204, "share of the subjects of each grade", 14, GREY)
    return sheet


def reading():
    """The line from the true share to the share that is read."""
    sheet = Sheet(420, 400, "The share that a classifier reads against the true share")
    at = lambda true, read: (60 + 320 * true, 340 - 300 * read)  # noqa: E731 - the axes, in one place
    sheet.line(*at(0, 0), *at(1, 0), GREY)
    sheet.line(*at(0, 0), *at(0, 1), GREY)
    _ticks(sheet, at)
    sheet.line(*at(0, 0), *at(1, 1), GREY, 1.5, "5 4")
    sheet.line(*at(0, 1 - SPECIFICITY), *at(1, SENSITIVITY), INK, 3)
    sheet.text(*at(0.77, 0.97), "no error", 14, GREY)
    sheet.text(*at(0.78, 0.53), "sensitivity 0.85,\nspecificity 0.90", 14)
    true = corrected(READ)
    sheet.arrow(*at(0, READ), *at(true, READ), FEMALE, 2.5)
    sheet.arrow(*at(true, READ), *at(true, 0), FEMALE, 2.5)
    sheet.text(*at(0.24, 0.09), f"read {READ:.2f}, true {true:.2f}", 15, FEMALE, "start", "bold")
    sheet.text(220, 386, "true female share", 15)
    sheet.add(
        "text",
        "share read as female",
        x=-190,
        y=18,
        transform="rotate(-90)",
        text_anchor="middle",
        font_family="Lato, Arial, sans-serif",
        font_size=15,
        fill=INK,
    )
    return sheet


def _ticks(sheet, at):
    for tick in (0, 0.5, 1):
        x, y = at(tick, 0)
        sheet.text(x, y + 20, f"{tick:g}", 14, GREY)
        x, y = at(0, tick)
        sheet.text(x - 8, y + 5, f"{tick:g}", 14, GREY, "end")


START = [-3.2, -3.0, -2.8, -2.7, -2.5, -2.3, -2.2, -2.0, -1.6, -1.0, 0.6, 2.2]
WANTED = [-3.1, -2.7, -2.4, -2.0, -1.5, -0.9, 0.3, 1.2, 1.8, 2.2, 2.6, 3.0]
ROWS = [
    ("where the images are", START, "10 of 12 read male; one or two near the middle"),
    ("target cohort", WANTED, "as real slices are spread: some near the middle"),
    (
        "class targets",
        [-4.1, -4.0, -3.95, -3.9, -3.85, -3.8, 3.8, 3.85, 3.9, 3.95, 4.0, 4.1],
        "the share is right; each sex a caricature",
    ),
    (
        "mean probability",
        [-0.25, -0.2, -0.16, -0.12, -0.08, -0.04, 0.0, 0.04, 0.08, 0.12, 0.16, 0.2],
        "the mean is right; every image ambiguous",
    ),
    (
        "quantile targets",
        [value + 0.06 * (-1) ** k for k, value in enumerate(WANTED)],
        "share and spread are right",
    ),
]


def targets():
    """Where each kind of target sends twelve images."""
    sheet = Sheet(
        420,
        470,
        "Twelve images on the line of the tuning classifier's logit, before and after three kinds "
        "of target",
    )
    for row, (name, logits, says) in enumerate(ROWS):
        y = 52 + row * 84
        sheet.text(20, y - 20, name, 15, anchor="start", weight="bold")
        sheet.line(20, y, 400, y, GREY, 1)
        sheet.line(210, y - 8, 210, y + 8, GREY, 1)
        for logit in logits:
            sheet.dot(210 + logit * 42, y, 7, FEMALE if logit > 0 else MALE, "#ffffff")
        sheet.text(20, y + 28, says, 14, GREY, "start")
    sheet.text(20, 460, "read male", 14, MALE, "start", "bold")
    sheet.text(210, 460, "tuning classifier's logit", 14, GREY)
    sheet.text(400, 460, "read female", 14, FEMALE, "end", "bold")
    return sheet


DRAWINGS = {"confounding.svg": confounding, "reading.svg": reading, "targets.svg": targets}
