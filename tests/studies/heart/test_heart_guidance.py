"""Two guidance scales side by side: what the table and the words say of tables whose contents are
known.
"""

import pandas as pd
import pytest

from fairlib.io import write_json
from studies.heart.arms import WAYS
from studies.heart.report import scales_in_words, scales_table
from studies.heart.study import long_runs


def tables(bmi=1.0, lost=-0.02, width=0.005):
    """Tables of a long run on hearts: one subgroup per way, whose loss of Dice is greatest for new
    combinations.
    """
    losses = dict(zip(WAYS, (lost / 2, lost, lost / 2), strict=True))
    dice = pd.DataFrame(
        [
            {
                "attribute": "bmi_class",
                "group": "obese",
                "images": 90,
                "subjects": 80,
                "mean": 0.98 + loss,
                "low": 0.9,
                "high": 0.99,
                "difference": loss,
                "difference_low": loss - width,
                "difference_high": loss + width,
                "way": way,
            }
            for way, loss in losses.items()
        ]
    )
    ratios = {"diagnosis": 1.1, "sex": 1.0, "age": 1.4, "bmi": bmi}
    recovered = pd.DataFrame(
        [
            {
                "attribute": name,
                "ratio": ratio,
                "ratio_low": ratio - 0.1,
                "ratio_high": ratio + 0.1,
                "way": way,
                "n": 90,
            }
            for name, ratio in ratios.items()
            for way in WAYS
        ]
    )
    flips = pd.DataFrame(
        {"word": ["diagnosis", "sex"], "moved": [0.4, 0.3], "low": [0.3, 0.2], "high": [0.5, 0.4]}
    )
    distances = pd.DataFrame(
        [
            ("normal", "normal", 0.5, 0.02),
            ("obese", "obese", 30.0, 0.01),
            ("F", "F", 2.0, 0.00),
            ("obese", "normal", 99.0, 0.01),
        ],
        columns=["real_group", "synthetic_group", "distance", "floor"],
    )
    memorisation = pd.DataFrame(
        {
            "way": "unseen",
            "reading": "through the autoencoder",
            "quantile": [0.01, 0.05],
            "share": [0.02, 0.07],
            "low": [0.01, 0.05],
            "high": [0.03, 0.1],
            "n": 90,
        }
    )
    return {
        "dice": dice,
        "recovered": recovered,
        "flips": flips,
        "distances": distances.assign(low=0.1, high=99.0),
        "memorisation": memorisation,
    }


def test_table_sets_the_figures_of_every_scale_side_by_side():
    found = scales_table({4.0: tables(2.2, -0.06), 2.0: tables(1.3, -0.03)}).set_index("figure")
    paper, other = found["scale 4, the paper's"], found["scale 2"]
    assert paper["body-mass index, as a share of held-out"] == "2.20 (2.10 to 2.30)"
    assert other["body-mass index, as a share of held-out"] == "1.30 (1.20 to 1.40)"
    assert (
        paper["Dice less that on held-out hearts, lowest subgroup, new combinations"]
        == "-0.060 (-0.065 to -0.055)"
    )
    assert (
        other["Dice less that on held-out hearts, lowest subgroup, unseen pairs"]
        == "-0.015 (-0.020 to -0.010)"
    )
    assert paper["MMD, farthest subgroup"].startswith("30.0") and paper[
        "MMD, farthest subgroup"
    ].endswith("obese")
    assert paper["MMD, median of the subgroups"] == "2.0", "of the groups' distances to themselves"
    assert found["reference"]["MMD, median of the subgroups"] == "real to real: at most 0.02"
    assert not found.index.str.contains("mm beyond").any(), "real people have no law"


def test_the_law_has_its_rows_where_there_is_one():
    law = pd.DataFrame(
        {
            "attribute": "all",
            "way": "unseen",
            "measure": ["diameter_ed", "wall_ed"],
            "beyond_real": [0.5, 0.25],
            "beyond_low": [0.1, 0.1],
            "beyond_high": [0.9, 0.4],
        }
    )
    found = scales_table({4.0: tables() | {"geometry": law}}).set_index("figure")
    assert (
        found.loc["wall, mm beyond error on held-out hearts", "scale 4, the paper's"]
        == "0.25 (0.10 to 0.40)"
    )


@pytest.mark.parametrize(
    ("high", "low", "words"),
    [
        (
            (2.2, -0.06),
            (1.3, -0.03),
            "4 instead of 2 is that the requested weight is stronger .* and the mask is followed less",
        ),
        (
            (2.2, -0.03),
            (1.3, -0.03),
            "is that the requested weight is stronger in the images than in held-out subjects.$",
        ),
        ((1.0, -0.06), (0.6, -0.03), "is that the mask is followed less well.$"),
        ((1.0, -0.03), (2.2, -0.06), "no cost of 4 against 2"),
        ((2.2, -0.035), (2.1, -0.03), "no cost of 4 against 2"),  # the intervals overlap
    ],
)
def test_the_words_follow_the_figures(high, low, words):
    said = scales_in_words({4.0: tables(*high), 2.0: tables(*low)})
    assert pd.Series([said]).str.contains(words).all()
    assert (
        f"shows {high[0]:.1f} (scale 4) and {low[0]:.1f} (scale 2) times as strongly as in held-out "
        "hearts" in said
    )
    assert f"by {high[1]:+.3f} (scale 4) and {low[1]:+.3f} (scale 2); the bound is -0.05" in said


def test_runs_that_were_not_made_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.engine.study.repository", lambda: tmp_path)
    root = tmp_path / "results"
    (root / "heart-guidance2").mkdir(parents=True)
    for name, content in tables().items():
        content.to_csv(root / "heart-guidance2" / f"{name}.csv", index=False)
    assert long_runs() == {}, "not begun"
    write_json(root / "heart-guidance2" / "study.json", {"study": {"guidance_scale": 2.0}})
    settings, found = long_runs()["heart-guidance2"]
    assert settings.guidance_scale == 2.0 and len(found["recovered"]) == 12
    for name in ("heart", "heart-shared", "heart-mnms"):
        write_json(root / name / "study.json", {"study": {}})
    assert list(long_runs()) == ["heart", "heart-shared", "heart-guidance2"]
