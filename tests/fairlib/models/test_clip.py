import math
from itertools import product

import pytest
import torch

from fairlib.errors import DataError, WeightsError
from fairlib.models import clip as cl
from fairlib.models.training import FitSettings

TEXTS = ["axial t1 of the brain", "axial flair of the brain", "a glioma on the left", ""]
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
}
TOWER_CONFIG = {
    **CONFIG,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
}
PROMPTS = [
    f"{sex}, age in {age}s, {diagnosis}"
    for sex, age, diagnosis in product(
        ("Female", "Male"), (50, 60, 70), ("healthy", "heart failure")
    )
]
CAPTIONS = [
    "Axial T1-weighted MRI of the brain.",
    "Brain MRI, axial FLAIR sequence: left hemispheric glioblastoma.",
    "A 54-year-old woman.",
    "T2 weighted axial MR image of the brain with a low-grade glioma on the right side.",
]


# vocabulary


def test_the_most_frequent_pair_is_merged_first():
    assert cl.learn_merges(["abab ab", "ab"], count=1) == [("a", "b</w>")]
    assert (
        cl.learn_merges(["xy zz", "xyq"], count=1) == [("x", "y")]
        or cl.learn_merges(["xyq xyq"], count=1)[0][0] == "x"
    )


def test_both_tokenizers_give_the_same_ids(tmp_path):
    merges = cl.learn_merges(CAPTIONS, count=60)
    cl.write_vocabulary(tmp_path, merges)
    texts = [*CAPTIONS, "", "A wörd 99 never seen?", "left right " * 40]
    ours = cl.clip_tokenizer(tmp_path)(texts)
    theirs = cl.pipeline_tokenizer(tmp_path)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert ours.shape == (len(texts), 32)
    assert (ours == theirs).all()


def test_a_frequent_word_becomes_one_token(tmp_path):
    cl.write_vocabulary(tmp_path, cl.learn_merges(["brain brain brain of"], count=50))
    ids = cl.clip_tokenizer(tmp_path)(["brain"])[0]
    assert int((ids != 0).sum()) == 3  # start, brain, end


# both towers


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    merges = cl.learn_merges(TEXTS, count=20)
    cl.write_vocabulary(folder, merges)
    torch.manual_seed(0)
    made = cl.build_clip(folder, CONFIG).eval()
    cl.save_clip(folder, made, merges, CONFIG)
    return folder, cl.load_clip(folder)


def test_the_exported_text_encoder_computes_what_open_clip_computes(clip):
    _, model = clip
    encoder, tokens = cl.text_encoder_of(model), model.tokenizer(TEXTS)
    with torch.no_grad():
        tower = model.model
        hidden = tower.transformer(
            tower.token_embedding(tokens) + tower.positional_embedding, attn_mask=tower.attn_mask
        )
        assert torch.allclose(encoder(tokens)[0], tower.ln_final(hidden), atol=1e-5)


def test_embeddings_have_unit_length_and_a_gradient(clip):
    images = torch.randn(3, 1, 64, 64).requires_grad_()
    embeds = clip[1].embed_images(images)
    assert torch.allclose(embeds.norm(dim=-1), torch.ones(3), atol=1e-5)
    embeds[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_training_brings_captions_to_their_images(clip):
    torch.manual_seed(1)
    model = cl.build_clip(clip[0], CONFIG)
    images = torch.full((16, 1, 32, 32), 128, dtype=torch.uint8)
    images[:8, :, :, :16] = 255
    images[8:, :, :16, :] = 255
    captions = [TEXTS[0]] * 8 + [TEXTS[2]] * 8
    losses = [
        s.loss for s in cl.fit_clip(model, images, captions, FitSettings(25, 8, 2e-3, warmup=2))
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_mirrored_pairs_teach_side(clip):
    torch.manual_seed(1)
    model = cl.build_clip(clip[0], CONFIG)
    images = torch.full((16, 1, 32, 32), 128, dtype=torch.uint8)
    # something bright on the left
    images[:, :, 8:24, 4:12] = torch.randint(200, 256, (16, 1, 16, 8), dtype=torch.uint8)

    def mirrored(text):
        return text.replace("left", "right")

    for _ in cl.fit_clip(
        model, images, [TEXTS[2]] * 16, FitSettings(30, 8, 2e-3, warmup=2), mirrored=mirrored
    ):
        pass
    with torch.no_grad():
        seen = model.embed_images(torch.cat([images, images.flip(-1)]).float() / 127.5 - 1)
        words = model.model.encode_text(model.tokenizer([TEXTS[2], mirrored(TEXTS[2])]))
        left, right = (seen @ words.T / words.norm(dim=1)).T
    assert (left > right).tolist() == [True] * 16 + [False] * 16


def test_the_direction_loss_is_one_minus_a_cosine_over_pairs_that_differ():
    # changes: (2, 0) and (1, -5)
    image = torch.tensor([[3.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    # changes: (1, 1) and (0, 0)
    text = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    words = torch.tensor([[1, 2], [3, 4], [1, 5], [3, 4]])
    assert cl.direction_loss(image, text, words) == pytest.approx(1 - 0.5**0.5)
    assert cl.direction_loss(image, text, words[[1, 1, 1, 1]]) == 0


def test_missing_and_broken_folders_are_named(clip, tmp_path):
    with pytest.raises(WeightsError, match="no CLIP here"):
        cl.load_clip(tmp_path)
    for file in clip[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "clip.safetensors").write_bytes((clip[0] / "clip.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not readable safetensors"):
        cl.load_clip(tmp_path)


# a text encoder that keeps attributes apart


def tower(tmp_path):
    cl.write_vocabulary(tmp_path, cl.learn_merges(PROMPTS, count=60))
    torch.manual_seed(0)
    return cl.TextTower(cl.build_clip(tmp_path, TOWER_CONFIG), PROMPTS)


def least_distances(model):
    with torch.no_grad():
        found = cl.attribute_distances(model.hidden(model.clip.tokenizer(PROMPTS)), PROMPTS)
    return {
        name: min(value for pair, value in found.items() if word in pair[0])
        for name, word in {"sex": "Female", "age": "age", "diagnosis": "healthy"}.items()
    }


def test_every_attribute_stays_apart_even_one_that_no_image_shows(tmp_path):
    """Images show the diagnosis alone; contrast with them lets sex and age fall together, reading
    does not.
    """
    prompts = PROMPTS * 4
    images = torch.full((len(prompts), 3, 16, 16), 64, dtype=torch.uint8)
    images[["failure" in prompt for prompt in prompts], :, :, :8] = 255
    found = {}
    for weight in (0.0, 1.0):
        model = tower(tmp_path)
        for _ in cl.fit_clip(
            model, images, prompts, FitSettings(60, 24, 3e-3, warmup=5), reading_weight=weight
        ):
            pass
        found[weight] = least_distances(model)
    assert min(found[1.0].values()) > 0.5
    assert min(found[0.0].values()) < 0.6 * min(found[1.0].values())


def test_the_exported_text_encoder_has_the_same_hidden_states(tmp_path):
    model = tower(tmp_path)
    encoder, tokens = cl.text_encoder_of(model.clip), cl.pipeline_tokenizer(tmp_path)
    ids = tokens(
        PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert torch.allclose(
            encoder(ids)[0], model.hidden(model.clip.tokenizer(PROMPTS)), atol=1e-5
        )


def test_distances_of_known_states():
    """Attributes on orthogonal axes, one three times as long: a difference is 2 a, the spread
    sqrt(sum a^2).
    """
    prompts = [f"{a}, {b}" for a, b in product("AB", "XY")]
    states = torch.tensor([[-1.0, -3], [-1, 3], [1, -3], [1, 3]])[:, None]
    found = cl.attribute_distances(states, prompts)
    assert found == {
        ("A", "B"): pytest.approx(2 / math.sqrt(10)),
        ("X", "Y"): pytest.approx(6 / math.sqrt(10)),
    }


def test_prompts_of_another_form_are_refused(tmp_path):
    cl.write_vocabulary(tmp_path, cl.learn_merges(PROMPTS, count=20))
    with pytest.raises(DataError, match="different numbers of attributes"):
        cl.TextTower(cl.build_clip(tmp_path, TOWER_CONFIG), [*PROMPTS, "a heart"])
