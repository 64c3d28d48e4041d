"""ROCO and ROCOv2 as they are released, on a handful of tiny images."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cohorts.roco import read_roco, read_rocov2, sex_in_caption

CAPTIONS = {
    "ROCO_00020": "Axial T2-weighted MRI of the brain of a 54-year-old woman.",
    "ROCO_00021": "Chest X-ray, of a man.",
    "ROCO_00022": "CT scan; image never fetched.",
    "ROCO_00023": "Human anatomy, management of HER-2 positive disease.",
    "ROCO_00024": "",
}


def picture(path, width=12, height=8, value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), value).save(path, quality=95)


@pytest.fixture
def roco(tmp_path):
    folder = tmp_path / "data" / "train" / "radiology"
    for key in CAPTIONS:
        if key != "ROCO_00022":
            picture(folder / "images" / f"{key}.jpg")
    (folder / "captions.txt").write_text(
        "".join(f"{key}\t {text}\n" for key, text in CAPTIONS.items())
    )
    (folder / "licences.txt").write_text(
        "ROCO_ID,PMC_ID,CC\nROCO_00020,PMC4608653_cro-0008-0385-g01.jpg,CC BY\n"
        "ROCO_00021,PMC4608653_cro-0008-0385-g02.jpg,CC "
        "BY\nROCO_00023,PMC2740150_1757-1626-2-6520-2.jpg,CC0\n"
    )
    return tmp_path


def test_the_released_layout_is_read(roco):
    cohort = read_roco(roco, size=16)
    assert cohort.table["image"].tolist() == ["ROCO_00020", "ROCO_00021", "ROCO_00023"]
    assert cohort.table["caption"][0] == CAPTIONS["ROCO_00020"]  # without the leading space
    assert cohort.table["mentions_sex"].tolist() == [True, True, False]
    assert cohort.table["sex_in_caption"].tolist() == ["F", "M", "none"]
    assert cohort.table["sex"].isna().all() and set(cohort.table["split"]) == {"train"}
    assert cohort.load().shape == (3, 1, 16, 16)


def test_missing_images_and_empty_captions_are_counted(roco):
    excluded = read_roco(roco).excluded
    assert dict(zip(excluded["item"], excluded["reason"], strict=True)) == {
        "ROCO_00022": "image missing",
        "ROCO_00024": "caption empty",
    }


def test_figures_of_one_article_are_one_subject(roco):
    assert read_roco(roco).table["subject"].tolist() == ["PMC4608653", "PMC4608653", "PMC2740150"]
    assert read_roco(roco).subjects() == ["PMC2740150", "PMC4608653"]
    (roco / "data/train/radiology/licences.txt").unlink()
    assert read_roco(roco).table["subject"].tolist() == ["ROCO_00020", "ROCO_00021", "ROCO_00023"]


def test_the_truth_of_a_phantom_is_joined(roco):
    truth = pd.DataFrame(
        {
            "image_id": ["ROCO_00021", "ROCO_00020"],
            "subject": ["p1", "p0"],
            "sex": ["M", "F"],
            "contrast": ["t1", "t2"],
            "grade": ["none", "HGG"],
            "side": ["none", "left"],
            "age": [50.5, 54],
        }
    )
    truth.to_csv(roco / "data/train/radiology/truth.csv", index=False)
    table = read_roco(roco).table
    assert table["subject"].tolist() == ["p0", "p1", "PMC2740150"]
    assert table["sex"].fillna("?").tolist() == ["F", "M", "?"] and table["grade"].fillna(
        "?"
    ).tolist() == [
        "HGG",
        "none",
        "?",
    ]
    assert table["age"].tolist()[:2] == [54, 50.5] and np.isnan(table["age"][2])
    truth.drop(columns="sex").to_csv(roco / "data/train/radiology/truth.csv", index=False)
    with pytest.raises(DataError, match="no column 'sex'"):
        read_roco(roco)


@pytest.mark.parametrize(
    ("text", "sex"),
    [
        ("MRI of a 3-year-old girl", "F"),
        ("63-year-old-male with pain", "M"),
        ("Women and men", "both"),
        ("He was treated; his liver", "M"),
        ("HER2 and HER-2 status", "none"),
        ("Management in humans of the mandible", "none"),
        ("The FEMALE pelvis", "F"),
        ("", "none"),
        ("sheath, hernia, manifest, germane", "none"),
        ("A lady's hip", "F"),
    ],
)
def test_sex_is_found_as_a_whole_word_only(text, sex):
    assert sex_in_caption(text) == sex


def test_rocov2_is_read(tmp_path):
    ids = [f"ROCOv2_2023_valid_{i:06d}" for i in range(3)]
    for key in ids[:2]:
        picture(tmp_path / "valid_images" / f"{key}.jpg")
    (tmp_path / "valid_captions.csv").write_text(
        "ID,Caption\n"
        + f'{ids[0]},"MRI, axial, of a ""boy"".\nSecond line."\n{ids[1]},CT scan.\n{ids[2]},Lost.\n'
    )
    cohort = read_rocov2(tmp_path, split="valid", size=16)
    assert cohort.table["caption"].tolist() == ['MRI, axial, of a "boy".\nSecond line.', "CT scan."]
    assert cohort.table["sex_in_caption"].tolist() == ["M", "none"] and cohort.excluded[
        "item"
    ].tolist() == [ids[2]]
    assert cohort.load().shape == (2, 1, 16, 16) and cohort.name == "rocov2"


def test_rocov2_accepts_the_mirrors_column_names(tmp_path):
    picture(tmp_path / "train_images" / "a.jpg")
    (tmp_path / "train_captions.csv").write_text("image_id,caption,cui\na,A knee.,C1\n")
    assert read_rocov2(tmp_path).table["caption"].tolist() == ["A knee."]
    (tmp_path / "train_captions.csv").write_text("image_id,text\na,A knee.\n")
    with pytest.raises(DataError, match="no column 'caption'"):
        read_rocov2(tmp_path)


def test_bad_input_is_named(roco):
    folder = roco / "data/train/radiology"
    with pytest.raises(DataError, match="did you mean 'train'"):
        read_roco(roco, split="trainn")
    with pytest.raises(DataError, match="splits of ROCOv2"):
        read_rocov2(roco, split="validation")
    with pytest.raises(DataError, match=r"validation.*captions\.txt"):
        read_roco(roco, split="validation")
    (folder / "images/ROCO_00020.jpg").write_bytes(b"not a picture")
    broken = read_roco(roco).excluded.set_index("item").loc["ROCO_00020"]
    assert broken["reason"] == "image broken" and "fetch it again" in broken["detail"]
    good = (folder / "captions.txt").read_text()
    (folder / "captions.txt").write_text(good + "ROCO_00020\t again\n")
    with pytest.raises(DataError, match="'ROCO_00020' stands twice"):
        read_roco(roco)
    (folder / "captions.txt").write_text(good + "ROCO_00099 no tab\n")
    with pytest.raises(DataError, match="line 6 has no tab"):
        read_roco(roco)
    (folder / "captions.txt").write_text("ROCO_99999\t x\n")
    with pytest.raises(DataError, match="fetch the images first"):
        read_roco(roco)


def test_broken_pictures_are_listed_at_reading_all_at_once(roco):
    images = roco / "data/train/radiology/images"
    (images / "ROCO_00020.jpg").write_bytes(b"")
    (images / "ROCO_00021.jpg").write_bytes((images / "ROCO_00021.jpg").read_bytes()[:200])
    cohort = read_roco(roco, size=16)
    assert cohort.table["image"].tolist() == ["ROCO_00023"] and len(cohort.load()) == 1
    broken = cohort.excluded[cohort.excluded["reason"] == "image broken"]
    assert broken["item"].tolist() == ["ROCO_00020", "ROCO_00021"]
    assert "is empty" in broken["detail"].iloc[0] and "decoded" in broken["detail"].iloc[1]


def test_a_picture_of_16_bits_keeps_its_greys(roco):
    path = roco / "data/train/radiology/images/ROCO_00020.jpg"
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    Image.fromarray(ramp).save(path, "PNG")
    image = read_roco(roco, size=16).load([0])[0, 0, 0].numpy()
    assert np.abs(image - np.linspace(-1, 1, 16)).max() < 0.01


def test_pictures_one_folder_deeper_are_named(tmp_path):
    picture(tmp_path / "train_images" / "train_images" / "a.jpg")
    (tmp_path / "train_captions.csv").write_text("ID,Caption\na,A knee.\n")
    with pytest.raises(DataError, match=r"\(there is train_images/a\.jpg\); fetch the images"):
        read_rocov2(tmp_path)
    (tmp_path / "train_images").rename(tmp_path / "images")
    with pytest.raises(
        DataError, match=r"there is no train_images in .* \(there is images/train_i"
    ):
        read_rocov2(tmp_path)
