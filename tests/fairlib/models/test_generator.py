import numpy as np
import pytest
import torch

from fairlib.errors import SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.alignment import AlignmentSettings, tune
from fairlib.methods.targets import Target
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.solvers import ddim
from fairlib.models.training import FitSettings, Trainer
from fairlib.rng import torch_rng
from studies.engine.stage import write_manifest

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = ["axial t1 of the brain", "axial flair of the brain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny pipeline folder, as `make base` writes it."""
    place = tmp_path_factory.mktemp("weights")
    cl.write_vocabulary(place / "clip", cl.learn_merges(PROMPTS, count=20))
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "clip", CONFIG))
    denoiser = gen.build_denoiser(channels=(16, 32), text_width=32)
    pipeline = gen.assemble(
        encoder, cl.pipeline_tokenizer(place / "clip"), build_autoencoder((8, 8, 8, 8)), denoiser
    )
    gen.save_pipeline(place / "brain", pipeline)
    write_manifest(place / "brain", {}, 0.0)
    return place / "brain"


@pytest.fixture
def generator(folder):
    return gen.Generator.load(folder)


def test_the_pipeline_itself_draws_the_same_image(generator, folder):
    """diffusers' own sampling loop and ours, from one folder and one noise."""
    steps, noise = 4, generator.noise(0, [3])
    solver = (
        ddim(generator.alphas_cumprod, steps, spacing="leading")
        if "spacing" in ddim.__code__.co_varnames
        else None
    )
    pipeline = generator.pipeline
    pipeline.scheduler.set_timesteps(steps)
    embeds = generator.encode_prompts(PROMPTS[:1])
    theirs = pipeline(
        prompt=PROMPTS[:1],
        latents=noise.clone(),
        num_inference_steps=steps,
        guidance_scale=2.0,
        output_type="latent",
        return_dict=False,
    )[0]
    latents = noise
    with torch.no_grad():
        for time in pipeline.scheduler.timesteps:
            predicted = generator.predict_noise(latents, int(time), embeds, 2.0)
            latents = pipeline.scheduler.step(predicted, time, latents).prev_sample
    assert torch.allclose(latents, theirs, atol=1e-4)
    if solver is not None and list(solver.timesteps) == pipeline.scheduler.timesteps.tolist():
        with torch.no_grad():
            ours = solver.run(lambda x, t: generator.predict_noise(x, t, embeds, 2.0), noise)
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_guidance_is_the_line_between_both_predictions(generator):
    latents, embeds = generator.noise(1, [0, 1]), generator.encode_prompts(PROMPTS)
    null = generator.encode_prompts(["", ""])
    with torch.no_grad():
        plain, blank = (
            generator.predict_noise(latents, 500, embeds),
            generator.predict_noise(latents, 500, null),
        )
        guided = generator.predict_noise(latents, 500, embeds, 3.0)
    assert torch.allclose(guided, blank + 3 * (plain - blank), atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_at_different_timesteps_in_one_call_are_those_of_a_call_each(generator, guidance):
    latents, embeds = generator.noise(1, [0, 1]), generator.encode_prompts(PROMPTS)
    times = [957, 37]
    with torch.no_grad():
        both = generator.predict_noise(latents, torch.tensor(times), embeds, guidance)
        for row, time in enumerate(times):
            given = latents[row : row + 1], time, embeds[row : row + 1], guidance
            assert torch.allclose(both[row], generator.predict_noise(*given)[0], atol=1e-5)
    assert not torch.allclose(both[1], both.flip(0)[1], atol=1e-2)


def test_noise_is_a_function_of_seed_and_index(generator):
    whole = generator.noise(4, [0, 1, 2])
    assert torch.equal(whole[2:], generator.noise(4, [2]))
    assert not torch.equal(whole[:1], generator.noise(5, [0]))
    assert abs(float(generator.noise(0, list(range(8))).std()) - 1) < 0.05


def test_a_processor_decodes_a_few_images_at_a_time(generator, monkeypatch):
    """With the images and the gradient of all at once; however large they are, one at least."""
    latents, sizes = generator.noise(0, range(19)).requires_grad_(), []
    slopes = torch.randn(19, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    vae = generator.pipeline.vae
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda part: sizes.append(len(part)) or decode(part))
    found = {}
    for cells in (2048, 10**9, 100):
        monkeypatch.setattr(gen, "CELLS_TOGETHER", cells)
        images = generator.decode(latents)
        found[cells] = images.detach(), torch.autograd.grad(images, latents, slopes)[0]
    assert sizes == [10, 9, 19, *[1] * 19]
    for few in (2048, 100):
        for part, whole in zip(found[few], found[10**9], strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


def test_a_whole_batch_decodes_as_each_alone(generator):
    latents = generator.noise(0, [0, 1, 2])
    with torch.no_grad():
        each = torch.cat([generator.decode(one) for one in latents.split(1)])
        assert torch.allclose(generator.decode(latents), each, atol=1e-5)


def test_the_frozen_copy_stays_when_the_original_moves(generator):
    twin = generator.frozen_copy()
    latents, embeds = generator.noise(0, [0]), generator.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        before = twin.predict_noise(latents, 10, embeds)
        next(iter(generator.trainable_parameters().values())).add_(1.0)
        assert torch.equal(twin.predict_noise(latents, 10, embeds), before)
        assert not torch.equal(generator.predict_noise(latents, 10, embeds), before)


def test_lora_starts_as_the_original_and_is_all_that_trains(generator):
    latents, embeds = generator.noise(0, [0]), generator.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        before = generator.predict_noise(latents, 10, embeds)
        generator.add_lora(2)
        assert torch.allclose(generator.predict_noise(latents, 10, embeds), before, atol=1e-6)
    named = generator.trainable_parameters()
    assert named and all("lora_" in name for name in named)


def test_lora_starts_as_its_seed_says_and_leaves_other_chance_alone(folder):
    def start(seed):
        generator = gen.Generator.load(folder)
        torch.rand(seed)  # whatever was drawn before
        state = torch.get_rng_state()
        generator.add_lora(2, seed)
        assert torch.equal(torch.get_rng_state(), state)
        named = generator.trainable_parameters()
        return torch.cat(
            [named[name].detach().flatten() for name in sorted(named) if "lora_A" in name]
        )

    first = start(1)
    assert torch.equal(first, start(1)) and not torch.equal(first, start(2))


def test_lora_weights_that_are_there_are_kept_or_refused(generator):
    generator.add_lora(2, 0)
    named = generator.trainable_parameters()
    with torch.no_grad():
        next(iter(named.values())).add_(1.0)
    before = {name: value.detach().clone() for name, value in named.items()}
    generator.add_lora(2, 5)
    after = generator.trainable_parameters()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    with pytest.raises(SettingsError, match="has LoRA weights of rank 2; .* rank 3"):
        generator.add_lora(3, 0)


def test_lora_tuning_goes_on_from_a_saved_state_with_the_same_bits(folder, tmp_path):
    """On the real denoiser, where the adapter is made by peft: a resumed run ends as the whole run
    does.
    """
    settings = AlignmentSettings(
        steps=3,
        prompts_per_step=1,
        images_per_prompt=2,
        cache_size=2,
        sampling_steps=2,
        replay_steps=1,
        guidance_scale=1.0,
        learning_rate=1e-2,
        trainable="lora",
        lora_rank=2,
        seed=3,
    )
    target = Target.shares({"F": 0.5, "M": 0.5}, [1.0, 2.0, -1.0, -2.0])

    def run(generator, state=None):
        torch.rand(7)
        return tune(
            generator,
            lambda images: images.mean((1, 2, 3)),
            PROMPTS,
            target,
            embed=lambda images: images.flatten(1),
            settings=settings,
            state=state,
        )

    whole = [step.state.to_tensors() for step in run(gen.Generator.load(folder))]
    used = gen.Generator.load(folder)
    write_tensors(tmp_path / "state.safetensors", next(run(used)).state.to_tensors())
    saved = read_tensors(tmp_path / "state.safetensors")
    resumed = [step.state.to_tensors() for step in run(gen.Generator.load(folder), saved)]
    assert len(resumed) == 2 and all(
        torch.equal(resumed[-1][name], value) for name, value in whole[-1].items()
    )
    assert any("lora_B" in name and value.any() for name, value in whole[-1].items())
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        next(run(used, saved))


def test_the_schedule_is_stable_diffusions(generator):
    assert np.allclose(generator.alphas_cumprod.numpy(), gen.alphas_cumprod().numpy(), atol=1e-6)


def test_a_draw_that_rounds_up_to_one_still_gets_a_time_step():
    """In single precision (127 + 0.99999...) / 128 is 1.0; step 955 of seed 3 draws such a
    number.
    """
    noisy, time, noise = gen.add_noise(torch.ones(128, 1, 1, 1), torch_rng(3, 21, 955))
    assert int(time.max()) == gen.TRAINING_STEPS - 1
    last = gen.alphas_cumprod().float()[-1]
    row = int(time.argmax())
    assert torch.equal(noisy[row], last.sqrt() + (1 - last).sqrt() * noise[row])


def test_what_the_denoiser_predicts_is_told_by_the_scheduler(generator):
    assert generator.prediction_type == "epsilon"
    pipeline = generator.pipeline
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )
    assert gen.Generator(pipeline).prediction_type == "v_prediction"


def test_denoising_loss_falls(folder):
    torch.manual_seed(0)
    denoiser = gen.build_denoiser(channels=(16, 32), text_width=32)
    latents = torch.ones(8, 4, 16, 16) * torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1, 1)
    embeds = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = [
        s.loss
        for s in gen.fit_denoiser(
            denoiser,
            latents,
            embeds,
            torch.arange(8) % 2,
            embeds[:1],
            FitSettings(30, 8, 2e-3, warmup=2),
        )
    ]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_changed_weights_are_refused(folder, tmp_path):
    import shutil

    copy = tmp_path / "brain"
    shutil.copytree(folder, copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="sha256"):
        gen.Generator.load(copy)
    with pytest.raises(WeightsError, match="no pipeline here"):
        gen.Generator.load(tmp_path / "nothing")


# any pipeline


def colour_pipeline(folder):
    """The same text encoder with a denoiser and an autoencoder of three channels, on 64 pixels."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(3)
    parts = (pipeline.text_encoder.float(), pipeline.tokenizer)
    autoencoder = build_autoencoder((8, 8, 8), image_channels=3, size=64)
    return gen.assemble(*parts, autoencoder, gen.build_denoiser((16, 32), text_width=32))


def test_colour_stays_colour_and_grey_stays_grey(folder, generator):
    pipeline = colour_pipeline(folder)
    colour = gen.Generator.from_pipeline(pipeline)
    images = colour.sample(PROMPTS, 0, steps=2)
    assert images.shape == (2, 3, 64, 64) and not torch.equal(images[:, 0], images[:, 1])
    assert images.dtype == torch.float32 and float(images.abs().max()) <= 1
    grey = gen.Generator.from_pipeline(pipeline, grey=True)
    latents = colour.noise(0, [0])
    with torch.no_grad():
        one, three = grey.decode(latents), colour.decode(latents)
    assert one.shape == (1, 1, 64, 64) and torch.allclose(one, three.mean(1, keepdim=True))
    assert generator.sample(PROMPTS, 0, steps=1).shape == (2, 1, 128, 128)


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_images_do_not_depend_on_the_micro_batch(folder, micro_batch):
    generator = gen.Generator.from_pipeline(colour_pipeline(folder))
    prompts, sizes = [*PROMPTS, PROMPTS[0]], []
    decode = generator.decode
    generator.decode = lambda latents: sizes.append(len(latents)) or decode(latents)
    whole = generator.sample(prompts, 7, steps=2)
    parts = generator.sample(prompts, 7, steps=2, micro_batch=micro_batch)
    assert torch.allclose(whole, parts, atol=1e-5) and max(sizes[1:]) <= micro_batch
    assert torch.equal(
        whole, generator.sample(prompts, noise=generator.noise(7, [0, 1, 2]), steps=2)
    )


def test_a_random_number_generator_draws_the_noise(generator):
    one, again, other = (
        generator.sample(PROMPTS, torch.Generator().manual_seed(seed), steps=1)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    with pytest.raises(SettingsError, match="either `rng`"):
        generator.sample(PROMPTS)
    with pytest.raises(SettingsError, match="2 prompts, but rows of {'noise': 1}"):
        generator.sample(PROMPTS, noise=generator.noise(0, [0]))


def test_a_saved_generator_is_read_by_diffusers_and_draws_the_same(folder, tmp_path):
    from diffusers import DiffusionPipeline

    generator = gen.Generator.load(folder)
    generator.mean_latent = torch.full((4, 16, 16), 0.2)
    with torch.no_grad():
        next(iter(generator.trainable_parameters().values())).add_(0.01)
    before = generator.sample(PROMPTS, 0, steps=2)
    generator.save(tmp_path / "tuned")
    assert torch.equal(gen.Generator.load(tmp_path / "tuned").sample(PROMPTS, 0, steps=2), before)
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "tuned", local_files_only=True)
    again = gen.Generator.from_pipeline(theirs)
    again.mean_latent = generator.mean_latent
    assert torch.allclose(again.sample(PROMPTS, 0, steps=2), before, atol=1e-5)
    generator.save(tmp_path / "tuned", half=True)
    small = gen.Generator.load(tmp_path / "tuned").sample(PROMPTS, 0, steps=2)
    assert torch.allclose(small, before, atol=2e-2) and generator.denoiser.dtype == torch.float32
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds something that is no pipeline"):
        generator.save(tmp_path)


def test_precision_and_size_are_adapted_where_the_pipeline_can(folder):
    generator = gen.Generator.load(folder)
    generator.adapt("bf16", 64)
    assert generator.denoiser.dtype == generator.pipeline.vae.dtype == torch.bfloat16
    image = generator.sample(PROMPTS[:1], 0, steps=1)
    assert image.shape[-2:] == (64, 64) and image.dtype == torch.float32
    generator.mean_latent = torch.zeros(4, 16, 16)
    with pytest.raises(SettingsError, match="image size 128: a pipeline with a mean latent"):
        generator.adapt(size=128)


def test_lora_weights_are_merged_when_saved(folder, tmp_path):
    generator = gen.Generator.load(folder)
    generator.add_lora(2)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.02)
    before = generator.sample(PROMPTS, 0, steps=2)
    generator.save(tmp_path / "tuned")
    again = gen.Generator.load(tmp_path / "tuned")
    assert not any("lora_" in name for name in again.denoiser.state_dict())
    assert torch.allclose(again.sample(PROMPTS, 0, steps=2), before, atol=1e-4)
    assert torch.equal(generator.sample(PROMPTS, 0, steps=2), before)


def test_a_pipeline_of_another_kind_is_refused(folder):
    pipeline = colour_pipeline(folder)
    with pytest.raises(SettingsError, match="it has no vae"):
        gen.Generator.from_pipeline(pipeline.__class__(**{**pipeline.components, "vae": None}))
    pipeline.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(SettingsError, match="SDXL"):
        gen.Generator.from_pipeline(pipeline)
    pipeline.unet.register_to_config(addition_embed_type=None, in_channels=9)
    with pytest.raises(SettingsError, match="inpainting"):
        gen.Generator.from_pipeline(pipeline)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_pipeline_samples_and_trains(folder, dtype):
    single = gen.Generator.from_pipeline(colour_pipeline(folder))
    half = gen.Generator.from_pipeline(colour_pipeline(folder).to(dtype))
    images = half.sample(PROMPTS, 0, steps=2, guidance_scale=2.0)
    assert images.dtype == torch.float32
    assert torch.allclose(images, single.sample(PROMPTS, 0, steps=2, guidance_scale=2.0), atol=0.1)
    named = half.trainable_parameters()
    trainer = Trainer(named, FitSettings(2, 1, 1e-5, warmup=0))
    before = {name: master.detach().clone() for name, master in trainer.masters.items()}
    latents, embeds = half.noise(0, [0, 1]), half.encode_prompts(PROMPTS)
    for step in trainer.run(lambda step: half.predict_noise(latents, 500, embeds).square().mean()):
        assert np.isfinite(step.gradient_norm)
    moved = [(trainer.masters[name] - value).abs().max() for name, value in before.items()]
    assert 0 < max(moved) < 1e-4 and half.denoiser.dtype == dtype
    assert all(bool(value.isfinite().all()) for value in named.values())


# cost


def test_evaluations_are_counted_by_purpose_and_kind(generator):
    latents, embeds = generator.noise(0, [0, 1]), generator.encode_prompts(PROMPTS)
    generator.sample(PROMPTS, 0, steps=3, guidance_scale=2.0, micro_batch=1)
    assert generator.evaluations == {("sampling", "forward"): 12}
    generator.trainable_parameters()
    generator.purpose = "replay"
    generator.predict_noise(latents, 5, embeds).sum().backward()
    with torch.no_grad():
        generator.predict_noise(latents, 5, embeds, 2.0)
    generator.frozen_copy().predict_noise(latents, 5, embeds)
    assert generator.evaluations.record() == {
        "sampling_forward": 12,
        "replay_forward": 6,
        "replay_backward": 2,
        "frozen_forward": 2,
    }
    assert generator.evaluations.cost == 12 + 6 + 2 * 2 + 2
