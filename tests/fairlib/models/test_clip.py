import pytest
import torch

from fairlib.errors import WeightsError
from fairlib.models import clip as cl
from fairlib.models.training import FitSettings

TEXTS = ["axial t1 of the brain", "axial flair of the brain", "a glioma on the left", ""]
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
}


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
        left, right = (seen @ model.embed_texts([TEXTS[2], mirrored(TEXTS[2])]).T).T
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
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        cl.load_clip(tmp_path)
