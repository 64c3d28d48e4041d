"""Draw the book's diagrams anew: `python book/figures/draw.py`.

Standard library only; the same bytes each time, which tests/book/test_figures.py checks.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import brains  # noqa: E402 - the folder is no package, because Sphinx copies it as it is
import charts  # noqa: E402
import diagrams  # noqa: E402

DRAWINGS = brains.DRAWINGS | diagrams.DRAWINGS | charts.DRAWINGS


def main():
    for name, draw in DRAWINGS.items():
        (HERE / name).write_text(draw().render(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
