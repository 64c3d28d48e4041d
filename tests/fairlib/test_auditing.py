"""The audit: shares that are known by construction, a page that is whole and harmless, and the same
numbers in the JSON.
"""

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

import fairlib
from fairlib import DataError, SettingsError
from fairlib.auditing import ALL, audit, read_folder
from fairlib.io import write_image
from fairlib.models.classifier import Architecture, build_classifier, halvings

TARGET = {"F": 0.458, "M": 0.542}
SHARES = {"a brain": 12, "<script>alert(1)</script> $x$": 30}  # women of 40 images each


def brightness(images):
    """Logits that are the mean grey, so that the share is that of bright images."""
    return 10 * images.flatten(1).mean(1)


def constant(values):
    """Constant images [N, 1, 8, 8] of these greys."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()


@pytest.fixture(scope="module")
def images():
    """42 bright images and 38 dark ones; two bright ones are ambiguous."""
    greys = [0.1, 0.1] + [0.5] * 10 + [-0.5] * 28 + [0.5] * 30 + [-0.5] * 10
    return constant(greys)


@pytest.fixture(scope="module")
def prompts():
    return [prompt for prompt in SHARES for _ in range(40)]


@pytest.fixture(scope="module")
def calibration():
    """Right on 90 of 100 women and on 160 of 200 men."""
    logits = [2.0] * 90 + [-2.0] * 10 + [-2.0] * 160 + [2.0] * 40
    return pd.DataFrame({"group": ["F"] * 100 + ["M"] * 200, "held-out": logits})


@pytest.fixture(scope="module")
def found(images, prompts, calibration):
    rng = np.random.default_rng(0)
    one = {"held-out": brightness}
    return audit(images, prompts, one, TARGET, rng=rng, calibration=calibration)


def cells(table, prompt=ALL):
    return table[table["prompt"] == prompt].iloc[0]


@pytest.mark.parametrize(
    ("prompt", "n", "women"), [(ALL, 80, 42), *((p, 40, k) for p, k in SHARES.items())]
)
def test_raw_shares_have_wilsons_interval(found, prompt, n, women):
    row = cells(found.shares, prompt)
    assert (row["n"], row["unreadable"], row["raw"]) == (n, 0, women / n)
    wanted = binomtest(women, n).proportion_ci(method="wilson")
    np.testing.assert_allclose([row["raw_low"], row["raw_high"]], wanted, atol=1e-12)


def test_corrected_share_is_rogan_and_gladens(found):
    row = cells(found.shares)
    slope = 0.9 + 0.8 - 1
    wanted = (42 / 80 + 0.8 - 1) / slope
    assert row["corrected"] == pytest.approx(wanted, abs=1e-12)
    # the delta method: variance of the observed share, and of both error rates
    variance = 42 * 38 / 80**3 + wanted**2 * 0.09 / 100 + (1 - wanted) ** 2 * 0.16 / 200
    reach = 1.96 * variance**0.5 / slope
    assert row["corrected_low"] == pytest.approx(wanted - reach, abs=0.02)
    assert row["corrected_high"] == pytest.approx(wanted + reach, abs=0.02)
    for end in ("", "_low", "_high"):
        assert row[f"difference{end}"] == pytest.approx(row[f"corrected{end}"] - 0.458, abs=1e-12)


def test_images_that_are_all_read_alike_leave_room_for_doubt(prompts, calibration):
    """All of 40 images bright: Wilson's low end, corrected, and no certainty."""
    one, rng = {"held-out": brightness}, np.random.default_rng(0)
    bright = constant([0.5] * 80)
    row = cells(audit(bright, prompts, one, TARGET, rng=rng, calibration=calibration).shares)
    low = binomtest(80, 80).proportion_ci(method="wilson").low
    assert (row["corrected"], row["corrected_high"]) == (1, 1)
    alike = audit(-bright, prompts, one, TARGET, rng=rng, calibration=calibration)
    dark = alike.shares
    high = binomtest(0, 80).proportion_ci(method="wilson").high
    for found, end in ((row["corrected_low"], low), (cells(dark)["corrected_high"], high)):
        assert found == pytest.approx(np.clip((end + 0.8 - 1) / 0.7, 0, 1))
    # no share of women gives 0 bright images of 80 where a fifth of the men is bright
    assert "beyond what the errors on the calibration set allow" in alike.page()


def test_ambiguous_images_are_those_within_the_band(found):
    # a logit of 1 is a probability of 0.73, one of 5 is 0.993
    assert cells(found.shares)["ambiguous"] == 2 / 80
    assert cells(found.shares, "a brain")["ambiguous"] == 2 / 40


def test_subjects_of_the_calibration_set_are_drawn_whole(images, prompts, calibration):
    """Twenty copies of each row as one subject say no more than the row."""
    calibration = calibration.iloc[::10]  # 10 women and 20 men
    copies = calibration.loc[calibration.index.repeat(20)].assign(subject=lambda t: t.index)
    widths = []
    for table in (calibration, copies, copies.drop(columns="subject")):
        one, rng = {"held-out": brightness}, np.random.default_rng(1)
        row = cells(audit(images, prompts, one, TARGET, rng=rng, calibration=table).shares)
        widths.append(row["corrected_high"] - row["corrected_low"])
    assert widths[1] == pytest.approx(widths[0], rel=0.1) and widths[2] < 0.9 * widths[0]


def test_without_a_calibration_set_the_raw_share_is_compared(images, prompts):
    found = audit(images, prompts, {"a": brightness}, TARGET, rng=np.random.default_rng(0))
    row = cells(found.shares)
    assert "corrected" not in found.shares and row["difference"] == row["raw"] - 0.458
    assert "the raw share of F is 52.5 %" in found.page()
    assert found.assumed["Calibration set"].startswith("none")


def test_several_groups_are_read_by_the_largest_logit():
    """Three groups by thirds of the greys: 20, 30 and 50 images; confused as by a known table."""
    images = constant([-1.0] * 20 + [0.0] * 30 + [1.0] * 50)

    def thirds(images):
        grey = images.flatten(1).mean(1)
        return torch.stack([-9 * (grey - centre) ** 2 for centre in (-1, 0, 1)], dim=1)

    target = {"A": 0.2, "B": 0.3, "C": 0.5}
    right = pd.DataFrame(np.repeat(np.eye(3) * 4, 10, 0), columns=[f"t.{g}" for g in target])
    right["group"] = np.repeat(list(target), 10)
    rng = np.random.default_rng(0)
    found = audit(images, ["p"] * 100, {"t": thirds}, target, rng=rng, calibration=right)
    whole = found.shares[found.shares["prompt"] == ALL]
    assert whole["group"].tolist() == list(target)
    for column in ("raw", "corrected"):
        np.testing.assert_allclose(whole[column], [0.2, 0.3, 0.5], atol=1e-12)
    np.testing.assert_allclose(whole["difference"], 0, atol=1e-12)
    assert "the corrected share of B is 30.0 %" in found.page()


def test_an_image_without_a_logit_is_left_out_and_counted(images, prompts):
    def sometimes(images):
        return torch.where(images.flatten(1).mean(1) > 0.3, torch.nan, brightness(images))

    found = audit(images, prompts, {"a": sometimes}, TARGET, rng=np.random.default_rng(0))
    row = cells(found.shares)
    assert (row["n"], row["unreadable"], row["raw"]) == (40, 40, 2 / 40)
    assert "40 (40 unreadable)" in found.page()


def test_distances_are_those_of_the_features(prompts):
    rng = np.random.default_rng(3)
    near, far = (torch.from_numpy(rng.normal(m, 0.1, (n, 1, 4, 4))).float().clamp(-1, 1)
                 for m, n in ((0.0, 240), (0.3, 80)))  # fmt: skip
    classifiers = {
        "c": build_classifier({"sex": "binary"}, Architecture(halvings(8, 8), features=6))
    }
    same, other = (
        audit(part, prompts, {"c": brightness}, TARGET, rng=np.random.default_rng(0),
              reference=near[80:], embeds={"pixels": lambda images: 9 * images.flatten(1)})
        for part in (near[:80], far)
    )  # fmt: skip
    assert same.distances["n"].tolist() == [80]
    floor = same.distances["floor_high"][0]
    assert same.distances["low"][0] < floor < other.distances["low"][0]
    rng = np.random.default_rng(0)
    own = audit(far, prompts, classifiers, TARGET, rng=rng, reference=near[80:])
    assert own.distances["features"].tolist() == ["c"]
    embeds = {"grey": lambda images: images.flatten(1).mean(1, keepdim=True)}
    rng = np.random.default_rng(0)
    grey = audit(far, prompts, classifiers, TARGET, rng=rng, reference=near, embeds=embeds)
    assert grey.distances["features"].tolist() == ["grey"]
    assert "Distances to the reference images" in grey.page()
    assert (
        "Distances to the reference" not in audit(far, prompts, classifiers, TARGET, rng=rng).page()
    )


# --- the page ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, rows of tables, and the text; a tag that is not closed fails."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append({})
        if tag == "td":
            self.rows[-1][dict(attrs)["data-label"]] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] == ["td"]:
            self.rows[-1][list(self.rows[-1])[-1]] += data


@pytest.fixture(scope="module")
def page(found):
    return Page(found.page())


def test_the_page_loads_nothing_and_runs_nothing(found, page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "base", "form"}
    places = [
        v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset")
    ]
    assert places and all(place.startswith("data:image/") for place in places)
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert "url(" not in found.page() and "@import" not in found.page()
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_without_the_packages_of_figures_the_page_has_no_chart(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    page = found.page()
    assert "svg+xml" not in page and len(Page(page).rows) > 3


def test_text_of_the_user_is_escaped(found, page):
    assert "beyond what the errors" not in found.page()
    assert "<script" not in found.page()
    assert "2. <script>alert(1)</script> $x$" in [row.get("prompt") for row in page.rows]


def test_every_image_has_an_alternative_and_is_what_it_says(page):
    sources = [attrs for tag, attrs in page.tags if tag == "img"]
    assert all(attrs["alt"] for attrs in sources)
    kinds = [attrs["src"].split(";")[0] for attrs in sources]
    assert kinds.count("data:image/svg+xml") == 1 and kinds.count("data:image/png") == 48
    first = base64.b64decode(sources[1]["src"].split(",")[1])
    assert first.startswith(b"\x89PNG") and "held-out: F 0.73" in page.text


def test_the_page_says_the_numbers_of_the_json(found, page, tmp_path):
    found.save(tmp_path / "out")
    assert (tmp_path / "out" / "audit.html").read_text() == found.page()
    stored = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert stored["target"] == TARGET and stored["distances"] == []
    rows = [row for row in page.rows if "raw" in row]
    assert len(rows) == len(stored["shares"]) == 3
    for shown, row in zip(rows, stored["shares"], strict=True):
        for name in ("raw", "corrected", "ambiguous"):
            ends = [100 * row[key] for key in (name, f"{name}_low", f"{name}_high")]
            np.testing.assert_allclose(numbers(shown[name]), ends, atol=0.0501)
        ends = [100 * row[f"difference{end}"] for end in ("", "_low", "_high")]
        np.testing.assert_allclose(numbers(shown["difference"]), ends, atol=0.0501)
        assert shown["n"] == str(row["n"]) and shown["classifier"] == row["evaluator"]
    assumed = {row["topic"]: row["assumed"] for row in page.rows if "topic" in row}
    assert assumed == stored["assumed"]
    assert assumed["Calibration set"] == "200 images of M, 100 images of F"
    readings = pd.read_csv(tmp_path / "out" / "readings.csv")
    assert readings["held-out"].tolist() == pytest.approx([1.0] * 2 + [5.0] * 10 + [-5.0] * 28
                                                          + [5.0] * 30 + [-5.0] * 10)  # fmt: skip


def numbers(text):
    return [float(part) for part in re.findall(r"[-+]?\d+\.\d", text)]


def test_the_same_audit_is_the_same_page(found, images, prompts, calibration):
    one, rng = {"held-out": brightness}, np.random.default_rng(0)
    again = audit(images, prompts, one, TARGET, rng=rng, calibration=calibration)
    pd.testing.assert_frame_equal(again.shares, found.shares)
    assert len(again.page()) == len(found.page())


def test_the_front_door_is_the_function_though_the_module_was_loaded_first():
    assert fairlib.audit is audit and callable(fairlib.audit)


# --- folders and mistakes ------------------------------------------------------------------------


def test_a_folder_gives_images_and_prompts_as_they_were_written(tmp_path):
    images = constant([-1.0, 0.2, 1.0])
    for name, image in zip("abc", images, strict=True):
        write_image(tmp_path / f"{name}.png", image)
    back, prompts = read_folder(tmp_path)
    assert back.shape == (3, 1, 8, 8) and prompts == ["(no prompt)"] * 3
    assert (back - images).abs().max() < 1 / 255
    (tmp_path / "images.csv").write_text('image;prompt\nc.png;"x; y"\na.png;z\n')
    back, prompts = read_folder(tmp_path)
    assert prompts == ["x; y", "z"] and back[:, 0, 0, 0].tolist() == [1.0, -1.0]
    back, prompts = read_folder(tmp_path, ["z"])
    assert prompts == ["z"] and back[:, 0, 0, 0].tolist() == [-1.0]
    with pytest.raises(DataError, match="no PNG or JPEG of these prompts"):
        read_folder(tmp_path, ["w"])
    write_image(tmp_path / "a.png", torch.zeros(3, 4, 4) + torch.tensor([-1.0, 0, 1]).view(3, 1, 1))
    with pytest.raises(DataError, match=r"images of \[\(4, 4\), \(8, 8\)\] pixels"):
        read_folder(tmp_path)
    (tmp_path / "images.csv").write_text("image,prompt\na.png,z\n")
    assert read_folder(tmp_path)[0].shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompts": ["a"]}, DataError, "1 prompts for 80 images"),
        ({"shares": {"F": 0.4, "M": 0.4}}, SettingsError, "not to 1"),
        ({"classifiers": {"c": lambda x: {"sex": x, "age": x}}}, SettingsError, "of one head"),
        ({"classifiers": {"c": lambda x: torch.zeros(len(x), 3)}}, SettingsError, "'c': logits of"),
        ({"classifiers": {"c": lambda x: brightness(x).sigmoid()}}, SettingsError, "probabilities"),
        ({"classifiers": {"c": lambda x: brightness(x) + torch.nan}}, DataError, "could read none"),
        ({"calibration": pd.DataFrame({"held-out": [1.0]})}, DataError, "column 'group'"),
        ({"calibration": pd.DataFrame({"group": ["F", "M"]})}, DataError, "column 'held-out'"),
        (
            {"calibration": pd.DataFrame({"group": ["F", "W"], "held-out": [1.0, -1.0]})},
            DataError,
            "holds the groups F, W; expected F, M",
        ),
        (
            {"calibration": pd.DataFrame({"group": ["F", "M"] * 9, "held-out": [-1.0, 1.0] * 9})},
            DataError,
            "sum to more than 1",
        ),
        ({"reference": torch.zeros(100, 1, 4, 4)}, DataError, r"reference images of shape \(1, 4"),
        ({"reference": torch.zeros(100, 1, 8, 8)}, DataError, "0 feature spaces"),
    ],
)
def test_a_mistake_is_one_error_that_helps(images, prompts, change, error, message):
    given = {"images": images, "prompts": prompts, "shares": TARGET} | change
    given.setdefault("classifiers", {"held-out": brightness})
    with pytest.raises(error, match=message):
        audit(**given, rng=np.random.default_rng(0))
