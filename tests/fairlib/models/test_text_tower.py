import math
from itertools import product

import pytest
import torch

from fairlib.errors import DataError
from fairlib.models import clip as cl
from fairlib.models.text_tower import TextTower, attribute_distances, fit_text_tower
from fairlib.models.training import FitSettings

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = [
    f"{sex}, age in {age}s, {diagnosis}"
    for sex, age, diagnosis in product(
        ("Female", "Male"), (50, 60, 70), ("healthy", "heart failure")
    )
]


def tower(tmp_path):
    cl.write_vocabulary(tmp_path, cl.learn_merges(PROMPTS, count=60))
    torch.manual_seed(0)
    return TextTower(cl.build_clip(tmp_path, CONFIG), PROMPTS)


def least_distances(model):
    with torch.no_grad():
        found = attribute_distances(model.hidden(model.clip.tokenizer(PROMPTS)), PROMPTS)
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
        for _ in fit_text_tower(
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
    found = attribute_distances(states, prompts)
    assert found == {
        ("A", "B"): pytest.approx(2 / math.sqrt(10)),
        ("X", "Y"): pytest.approx(6 / math.sqrt(10)),
    }


def test_prompts_of_another_form_are_refused(tmp_path):
    cl.write_vocabulary(tmp_path, cl.learn_merges(PROMPTS, count=20))
    with pytest.raises(DataError, match="different numbers of attributes"):
        TextTower(cl.build_clip(tmp_path, CONFIG), [*PROMPTS, "a heart"])
