"""Folders of pipelines and CLIPs as users have them: each loads right, or is one WeightsError."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairlib.errors import SettingsError, WeightsError
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models import loading
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.controlnet import ControlledGenerator, build_controlnet

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = ["axial t1 of the brain", "axial flair of the brain"]
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    cl.write_vocabulary(place / "clip", cl.learn_merges(PROMPTS, count=20))
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "clip", CONFIG))
    denoiser = gen.build_denoiser(channels=(16, 32), text_width=32)
    tokenizer = cl.pipeline_tokenizer(place / "clip")
    pipeline = gen.assemble(encoder, tokenizer, build_autoencoder((8, 8, 8, 8)), denoiser)
    gen.save_pipeline(place / "brain", pipeline, half=False)
    return place / "brain"


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "brain")


@pytest.fixture(scope="module")
def image(written):
    return drawn(written)


def drawn(folder):
    return gen.Generator.load(folder).sample(PROMPTS[:1], 0, steps=2)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder):
    return [path for path in folder.glob("*/*.safetensors") if path.parent.name != "scheduler"]


def other_unet(folder, **options):
    """Another UNet in place of the pipeline's."""
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet/config.json").read_text())
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(**(known | options)).save_pretrained(folder / "unet")


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder")])
@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_weights_of_a_variant_alone_are_read(folder, image, parts, variant):
    for path in weights(folder):
        if path.parent.name in parts:
            path.rename(
                path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors"))
            )
    assert torch.equal(drawn(folder), image)


def test_the_variant_is_passed_over_where_whole_weights_are_there(folder, image):
    for path in weights(folder):
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
    assert torch.equal(drawn(folder), image)


def test_pointers_beside_the_weights_that_are_read_do_no_harm(folder, image):
    for path in weights(folder):
        for other in (path.with_suffix(".bin"), path.with_name(f"{path.stem}.fp16.safetensors")):
            other.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert torch.equal(drawn(folder), image)


def test_pickled_weights_are_named_and_not_opened(folder):
    for path in weights(folder):
        path.with_suffix(".bin").write_bytes(b"not opened")
        path.unlink()
    message = r"text_encoder: model\.bin is a pickle.*use_safetensors=False\)\.save_pretrained"
    with pytest.raises(WeightsError, match=message):
        gen.Generator.load(folder)


def spoilt(folder, part, way):
    path = folder / part
    if way == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif way == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif way == "gone":
        path.unlink()
    elif way == "page":
        path.write_text("<html>404 not found</html>")
    else:
        tensors = load_file(path)
        name = sorted(tensors)[-1]
        tensors.pop(name) if way == "lacks" else tensors[name].fill_(torch.nan)
        save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("part", [UNET, TEXT])
@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("pointer", "a pointer of git-lfs, not weights; run `git lfs pull`"),
        ("cut", "fetch it again"),
        ("page", "fetch it again"),
        ("gone", r"holds no weights \(\*\.safetensors\)"),
        ("lacks", r"holds \d+ of \d+ weights"),
        ("nan", "weights hold NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*meta")
def test_weights_that_cannot_be_meant_name_their_part(folder, part, way, message):
    spoilt(folder, part, way)
    with pytest.raises(WeightsError, match=f"{part.split('/')[0]}.*{message}"):
        gen.Generator.load(folder)


@pytest.mark.parametrize("name", ["unet", "scheduler", "tokenizer"])
def test_a_part_that_is_missing_is_named_with_those_that_are_there(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(WeightsError, match=f"{name} is named in model_index.json.*text_encoder"):
        gen.Generator.load(folder)


@pytest.mark.parametrize("file", [INDEX, "unet/config.json", SCHEDULER])
def test_broken_json_is_one_error(folder, file):
    (folder / file).write_text("{")
    with pytest.raises(WeightsError, match=str(folder)):
        gen.Generator.load(folder)


def test_a_safety_checker_without_its_folder_is_left_out(folder, image):
    edit(
        folder / INDEX,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    assert torch.equal(drawn(folder), image)


@pytest.mark.parametrize(
    ("changes", "gone", "message"),
    [
        ({"_class_name": "IFPipeline"}, ["unet"], "IFPipeline .*it has no unet; use a Stable"),
        ({"_class_name": "FluxPipeline"}, ["unet", "vae"], "FluxPipeline .*it has no unet, vae"),
    ],
)
def test_a_pipeline_of_another_kind_is_named_before_it_is_read(folder, changes, gone, message):
    index = json.loads((folder / INDEX).read_text()) | changes
    left = {name: value for name, value in index.items() if name not in gone}
    (folder / INDEX).write_text(json.dumps(left))
    with pytest.raises(WeightsError, match=message):
        gen.Generator.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_class_embeds": 2}, "wants class labels"),
        ({"class_embed_type": "timestep"}, "wants class labels"),
        ({"in_channels": 9}, "inpainting, depth.*9 channels for 4"),
        ({"out_channels": 8}, "gives 8 channels for 4"),
        ({"sample_size": None}, "states no sample_size"),
        ({"cross_attention_dim": 48}, "text encoder is 32 wide, its UNet attends to 48"),
        ({"time_cond_proj_dim": 16}, "latent consistency"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "SDXL",
        ),
    ],
)
def test_a_unet_that_wants_more_is_refused_at_loading(folder, options, message):
    other_unet(folder, **options)
    with pytest.raises(WeightsError, match=message):
        gen.Generator.load(folder)


def test_a_latent_denoiser_without_its_autoencoder_draws_no_pixels(folder):
    index = json.loads((folder / INDEX).read_text()) | {"_class_name": "IFPipeline"}
    (folder / INDEX).write_text(json.dumps({k: v for k, v in index.items() if k != "vae"}))
    shutil.rmtree(folder / "vae")
    with pytest.raises(WeightsError, match="takes more than images .*: 4 channels for 3"):
        gen.Generator.load(folder)


def test_images_need_not_be_square(folder):
    other_unet(folder, sample_size=[8, 16])
    assert drawn(folder).shape[-2:] == (64, 128)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_velocity_without_signal_at_the_end_draws_finite_images(folder, spacing):
    edit(
        folder / SCHEDULER,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
    )
    generator = gen.Generator.load(folder)
    assert float(generator.alphas_cumprod[-1]) == 0
    assert bool(generator.sample(PROMPTS[:1], 0, steps=3).isfinite().all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "rescaled to end without signal"),
        ({"prediction_type": "sample"}, "expected one of epsilon, v_prediction"),
        ({"trained_betas": [0.0, *[0.01] * 999]}, "not finite"),
        ({"beta_start": -0.1, "beta_schedule": "linear"}, "not finite"),
    ],
)
def test_a_schedule_that_no_solver_can_follow_is_refused_at_loading(folder, changes, message):
    edit(folder / SCHEDULER, **changes)
    with pytest.raises(SettingsError, match=message):
        gen.Generator.load(folder)


def test_a_cosine_schedule_is_followed_from_where_a_signal_is_left(folder, image):
    edit(folder / SCHEDULER, beta_schedule="squaredcos_cap_v2")
    generator = gen.Generator.load(folder)
    # alphas of the cosine (Nichol & Dhariwal 2021, eq. 17), of which the first T are at least 0.0046
    time = (torch.arange(1, 1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2
    wanted = time.cos() ** 2 / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos() ** 2
    wanted = wanted[wanted >= 0.0046]
    torch.testing.assert_close(generator.alphas_cumprod, wanted, rtol=1e-3, atol=1e-6)
    drawn_by_cosine = generator.sample(PROMPTS[:1], 0, steps=2)
    assert bool(drawn_by_cosine.isfinite().all()) and not torch.equal(drawn_by_cosine, image)


def test_a_scheduler_without_alphas_is_refused(folder):
    edit(folder / INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    kind = "FlowMatchEulerDiscreteScheduler"
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(WeightsError, match="its scheduler has no alphas_cumprod"):
        gen.Generator.load(folder)


def test_a_tokenizer_without_a_length_uses_that_of_the_text_encoder(folder, image):
    path = folder / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("model_max_length")
    path.write_text(json.dumps(config))
    assert torch.equal(drawn(folder), image)
    edit(path, model_max_length=4000)
    assert torch.equal(drawn(folder), image)
    edit(path, model_max_length=8)
    assert gen.Generator.load(folder).encode_prompts(PROMPTS).shape[1] == 8


def test_a_tokenizer_of_more_words_than_the_text_encoder_is_refused(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(WeightsError, match=r"its tokenizer has (\d+) words, its text encoder"):
        gen.Generator.load(folder)


def test_a_tokenizer_without_its_vocabulary_is_refused(folder):
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(WeightsError, match="tokenizer"):
        gen.Generator.load(folder)


def test_what_a_foreign_loader_raises_names_the_part(folder):
    edit(folder / "unet/config.json", block_out_channels=[32, 64])
    with pytest.raises(WeightsError, match=f"{folder}: does not load: unet: .*; fetch it again"):
        gen.Generator.load(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_lora_weights", "my-LoRA_v2", "unet/adapter_model", "learned_embeds"]
)
def test_lora_weights_beside_a_pipeline_are_said_to_be_unread(folder, image, name):
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, folder / f"{name}.safetensors")
    with pytest.warns(UserWarning, match=rf"{name}\.safetensors was not read.*load_lora_weights"):
        assert torch.equal(drawn(folder), image)


def test_a_folder_of_lora_weights_alone_says_so(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(WeightsError, match="no pipeline here.*changes a pipeline: load its base"):
        gen.Generator.load(tmp_path)


def test_what_is_there_instead_of_a_pipeline_is_said(folder, tmp_path):
    with pytest.raises(WeightsError, match=f"no pipeline here .*give {folder}"):
        gen.Generator.load(tmp_path)
    with pytest.raises(WeightsError, match=r"no pipeline here \(there is brain/\)"):
        gen.Generator.load(tmp_path / "Brain")
    with pytest.raises(WeightsError, match="is one file; .*from_single_file"):
        gen.Generator.load(folder / UNET)


@pytest.mark.parametrize("content", [{"version": 3}, {"files": ["a"]}, {"files": {"a": {}}}, [1]])
def test_a_manifest_of_another_program_is_passed_over(folder, image, content):
    (folder / "manifest.json").write_text(json.dumps(content))
    assert torch.equal(drawn(folder), image)


def test_home_and_relative_folders_mean_the_same(folder, image, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    assert torch.equal(drawn("~/brain"), image)
    assert torch.equal(drawn("brain"), image)
    assert torch.equal(drawn("../" + folder.parent.name + "/brain"), image)


def test_a_loaded_pipeline_that_cannot_be_driven_is_a_settings_error(written):
    pipeline = gen.Generator.load(written).pipeline
    pipeline.tokenizer.pad_token = None
    with pytest.raises(SettingsError, match="no token to pad prompts with"):
        gen.Generator.from_pipeline(pipeline)


def test_a_controlnet_of_another_unet_is_refused(written, tmp_path):
    other = build_controlnet(gen.build_denoiser(channels=(16, 32), text_width=48))
    other.save_pretrained(tmp_path / "control")
    with pytest.raises(WeightsError, match=r"another UNet \(cross_attention_dim differ\)"):
        ControlledGenerator.load(written, controlnet=tmp_path / "control")
    (tmp_path / "control/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="control: holds no weights"):
        ControlledGenerator.load(written, controlnet=tmp_path / "control")


# ---- CLIP

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
WORDS = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
STATISTICS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """A folder of open_clip, as one downloads it, and its model."""
    from open_clip.model import CLIP

    place = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(0)
    model = CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=WORDS, quick_gelu=True).eval()
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": WORDS, "quick_gelu": True}
    content = {"model_cfg": config, "preprocess_cfg": STATISTICS}
    (place / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, place / "open_clip_model.safetensors")
    return place, model


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_open_clip_embeds_as_open_clip_does(downloaded, prefix):
    place, model = downloaded
    clip = cl.load_clip(f"{prefix}{place}")
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        theirs = model.encode_image((image - mean) / std)
        ours = clip.embed_images(image * 2 - 1)
    assert torch.allclose(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5)
    assert not any(p.requires_grad for p in clip.parameters())


def test_the_text_tower_is_exported_with_its_own_activation(downloaded):
    place, _ = downloaded
    clip = cl.load_clip(place)
    encoder, tokens = cl.text_encoder_of(clip), clip.tokenizer(["a scan"])
    states = clip.model.token_embedding(tokens) + clip.model.positional_embedding
    with torch.no_grad():
        theirs = clip.model.ln_final(clip.model.transformer(states, attn_mask=clip.model.attn_mask))
        assert torch.allclose(encoder(tokens)[0], theirs, atol=1e-5)


def test_broken_folders_of_open_clip_are_one_error(downloaded, tmp_path):
    place = shutil.copytree(downloaded[0], tmp_path / "clip")
    file = place / "open_clip_model.safetensors"
    file.rename(place / "open_clip_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"open_clip_pytorch_model\.bin is a pickle"):
        cl.load_clip(place)
    (place / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=f"{place}: .*complete the folder"):
        cl.load_clip(place)
    (place / "open_clip_config.json").write_text("{")
    with pytest.raises(WeightsError, match=f"{place}: .*complete the folder"):
        cl.load_clip(place)


def test_a_model_with_a_text_tower_of_the_hub_gives_its_image_tower(tmp_path, monkeypatch):
    """As BiomedCLIP: 256 tokens, a text tower that is another model, its own normalisation."""
    from open_clip import CustomTextCLIP

    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear",
              "timm_model_pretrained": False, "image_size": 160}  # fmt: skip
    words = {"hf_model_name": "nowhere/nothing", "hf_proj_type": "mlp", "context_length": 256}
    torch.manual_seed(0)
    model = CustomTextCLIP(16, dict(vision), WORDS).eval()
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": words}
    content = {"model_cfg": config, "preprocess_cfg": STATISTICS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: v.contiguous() for name, v in model.state_dict().items() if v.ndim}
    save_file(state | {"text.other": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    asked = []
    monkeypatch.setattr(cl, "hub_folder", lambda name, local: asked.append(name) or tmp_path)
    clip = cl.load_clip("biomedclip")
    assert asked == ["microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"]
    image = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        theirs = model.encode_image((image - mean) / std)
        ours = clip.embed_images(image * 2 - 1)
    assert torch.allclose(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5)
    state.pop("visual.head.proj.weight")
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match="head.proj.weight"):
        cl.load_clip(tmp_path)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("openai", "timm/vit_base_patch32_clip_224.openai"),
        ("ViT-B-32:laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("hf-hub:owner/model", "owner/model"),
    ],
)
def test_names_of_open_clip_are_looked_up_on_the_hub(monkeypatch, tmp_path, name, address):
    asked = []
    monkeypatch.setattr(cl, "hub_folder", lambda name, local: asked.append(name) or tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds no safetensors"):
        cl.load_clip(name)
    assert asked == [address]


def test_names_of_clip_that_are_not_there_are_one_error_with_a_remedy(tmp_path):
    with pytest.raises(WeightsError, match="BiomedCLIP: no CLIP here .*open_clip_config.json"):
        cl.load_clip("BiomedCLIP")
    with pytest.raises(WeightsError, match="me/nothing: .*local_files_only=False.* by hand"):
        cl.load_clip("hf-hub:me/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="no CLIP of this library"):
        cl.load_clip(tmp_path)


def test_nothing_is_warned_of_when_all_is_well(written):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gen.Generator.load(written)


# ---- names of base models


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(written, tmp_path, monkeypatch):
    """A cache of the hub that holds a pipeline under one commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--name"
    shutil.copytree(written, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


def test_a_folder_is_itself_even_where_it_is_called_as_a_preset(folder, monkeypatch):
    assert loading.pipeline_folder(str(folder)) == (folder, "brain")
    monkeypatch.chdir(folder.parent)
    assert loading.pipeline_folder("brain") == (Path("brain"), "brain")


def test_a_hub_name_with_its_commit_is_found_in_the_cache(hub, image):
    found, name = loading.pipeline_folder("owner/name", COMMIT)
    assert found == hub and name == f"owner/name@{COMMIT}"
    assert torch.equal(drawn(found), image)
    assert loading.pipeline_folder(f"owner/name@{COMMIT}") == (found, name)


@pytest.mark.parametrize("revision", ["", "main", COMMIT[:7], COMMIT.upper()])
def test_a_hub_name_without_a_commit_is_refused(hub, revision):
    with pytest.raises(SettingsError, match=f"revision is {revision!r}; give the 40 hex"):
        loading.pipeline_folder("owner/name", revision)


def test_a_folder_has_no_revision(folder):
    with pytest.raises(SettingsError, match="and none for a folder"):
        loading.pipeline_folder(str(folder), COMMIT)


def test_a_folder_that_is_not_there_is_named_with_the_nearest(folder):
    with pytest.raises(
        SettingsError, match=r"none for a folder \(there is brain/\), or one of .*sd15"
    ):
        loading.pipeline_folder(str(folder.with_name("brian")))


def test_what_is_not_in_the_cache_or_holds_pickles_alone_says_what_to_do(hub):
    with pytest.raises(WeightsError, match="owner/other: not there: .*; allow the hub with"):
        loading.pipeline_folder("owner/other", COMMIT)
    weight = hub / UNET
    weight.rename(weight.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="owner/name: holds no weights as safetensors; if it"):
        loading.pipeline_folder("owner/name", COMMIT)


def test_only_the_files_of_a_pipeline_are_fetched(monkeypatch, tmp_path):
    """Single-file copies, variants and pickles of the same weights would be gigabytes more."""
    from fnmatch import fnmatch

    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(WeightsError, match="no weights as safetensors"):
        loading.pipeline_folder("sd15", local=False)
    preset = loading.PRESETS["sd15"]
    assert (asked["name"], asked["revision"]) == (preset.source, preset.revision)
    assert asked["local_files_only"] is False

    def fetched(path):
        allowed = any(fnmatch(path, pattern) for pattern in asked["allow_patterns"])
        return allowed and not any(fnmatch(path, pattern) for pattern in asked["ignore_patterns"])

    part = "unet/diffusion_pytorch_model"
    assert all(map(fetched, [INDEX, f"{part}.safetensors", "tokenizer/merges.txt", SCHEDULER]))
    spare = ["v1-5-pruned.safetensors", f"{part}.fp16.safetensors", f"{part}.bin",
             f"{part}.non_ema.safetensors", "safety_checker/model.safetensors"]  # fmt: skip
    assert not any(map(fetched, spare))


@pytest.mark.parametrize("name", loading.PRESETS)
def test_a_preset_is_a_folder_of_this_project_or_has_a_commit(name):
    preset, root = loading.PRESETS[name], Path(__file__).resolve().parents[3]
    shipped = (root / preset.source / INDEX).is_file()
    assert shipped or re.fullmatch("[0-9a-f]{40}|", preset.revision)
    assert shipped == preset.source.startswith("weights/") and preset.note
    if not shipped and not preset.revision:
        with pytest.raises(SettingsError, match=f"{preset.source}: revision is ''"):
            loading.pipeline_folder(name)


def test_every_shipped_pipeline_has_a_preset():
    shipped = {path.parent.name for path in Path("weights").glob(f"*/{INDEX}")}
    assert shipped == {name for name, p in loading.PRESETS.items() if p.source.startswith("we")}
