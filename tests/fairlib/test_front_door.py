"""What a stranger imports, and the example of the README: any Stable Diffusion, any classifier."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fairlib
from fairlib import SettingsError
from fairlib.models import clip
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.generator import assemble, build_denoiser
from tests.fairlib.strangers import CONFIG

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["brain of a patient", "axial brain"]
SHARES = {"F": 0.458, "M": 0.542}


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()


def test_import_loads_nothing_heavier_than_the_errors():
    loaded = run("import sys, fairlib; print(*sys.modules)")
    heavy = {"torch", "numpy", "pandas", "scipy", "diffusers", "sklearn", "matplotlib", "pydantic"}
    assert not heavy & set(loaded)
    assert [name for name in loaded if name.startswith("fairlib.")] == ["fairlib.errors"]


def test_tuning_loads_no_network_library():
    loaded = run("import sys, fairlib; fairlib.tune, fairlib.Target; print(*sys.modules)")
    assert not {"diffusers", "transformers", "pandas", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("name", fairlib.__all__)
def test_every_name_resolves(name):
    value = getattr(fairlib, name)
    assert value is getattr(fairlib, name) and name in dir(fairlib)
    assert name == "__version__" or value.__doc__


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "fairlib" / "__init__.py").read_text())
    [checking] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        alias.name: node.module.removeprefix("fairlib.")
        for node in checking.body
        for alias in node.names
    }
    assert told == fairlib._MODULES
    errors = {"CorruptScan", "DataError", "FairlibError", "SettingsError", "WeightsError"}
    assert sorted({*told, *errors, "__version__"}) == sorted(fairlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tuned'"):
        _ = fairlib.tuned


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip.write_vocabulary(folder, clip.learn_merges(PROMPTS, count=20))
    return folder


def pipeline_of(vocabulary, dtype=torch.float32):
    """A tiny random pipeline of diffusers."""
    torch.manual_seed(0)
    return assemble(
        clip.text_encoder_of(clip.build_clip(vocabulary, CONFIG)),
        clip.pipeline_tokenizer(vocabulary),
        build_autoencoder((8, 8, 8, 8)),
        build_denoiser(channels=(16, 32), text_width=32),
    ).to(dtype=dtype)


def logits_of(images):
    """Logits [N] of a stranger's classifier: bright is the first group."""
    return 20 * images.flatten(1).mean(1)


def groups_of(images):
    """Logits [N, 3]: three stripes."""
    return 20 * torch.stack([part.flatten(1).mean(1) for part in images.chunk(3, dim=-1)], dim=1)


def settings_of(**changes):
    few = {"steps": 2, "prompts_per_step": 2, "images_per_prompt": 4, "cache_size": 4}
    return fairlib.AlignmentSettings(
        **{**few, "sampling_steps": 2, "replay_steps": 1, "learning_rate": 1e-3, **changes}
    )


REAL = 2 * torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(1)) - 1


def generator_of(pipeline):
    return fairlib.Generator.from_pipeline(pipeline)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_example_runs_on_any_pipeline(vocabulary, dtype):
    generator = generator_of(pipeline_of(vocabulary, dtype))
    before = {n: p.detach().clone() for n, p in generator.denoiser.named_parameters()}
    scores = logits_of(REAL)
    target = fairlib.Target.shares(SHARES, scores)
    said = []
    for step in fairlib.tune(
        generator, logits_of, PROMPTS, target, settings=settings_of(micro_batch=3)
    ):
        said.append((step.step, step.shares))
    assert [number for number, _ in said] == [0, 1]
    assert all(shares.keys() == SHARES.keys() for _, shares in said)
    assert all(sum(shares.values()) == pytest.approx(1) for _, shares in said)
    assert not step.skipped and step.images.dtype == torch.float32
    after = dict(generator.denoiser.named_parameters())
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in after.values())
    assert any(not torch.equal(p, before[name]) for name, p in after.items())


def test_settings_have_defaults(vocabulary, monkeypatch):
    """Eight lines, no settings; the base model is not sampled here, only what would be is seen."""
    generator = generator_of(pipeline_of(vocabulary))
    made = []
    monkeypatch.setattr(
        "fairlib.methods.alignment._Run.optimise",
        lambda run: made.append(run) or run.cache.describe,
    )
    monkeypatch.setattr("fairlib.methods.alignment.fixed_targets", lambda cache, targets: {})
    target = fairlib.Target.shares(SHARES, logits_of(REAL))
    for cache in fairlib.tune(generator, logits_of, PROMPTS[:1], target):
        assert cache["cache_size"] == 256 and cache["prompts"] == PROMPTS[:1]
        break
    assert made[0].settings == fairlib.AlignmentSettings(prompts_per_step=1)
    assert made[0].settings.family == "transport"


@pytest.mark.parametrize("family", ["transport", "quantile", "class", "mean_kl", "mean_l2"])
def test_three_groups_of_any_names_with_every_family(vocabulary, family):
    generator = generator_of(pipeline_of(vocabulary))
    shares = {"left": 0.2, "middle": 0.3, "right": 0.5}
    target = fairlib.Target.shares(shares, groups_of(REAL), ["left", "middle", "right"] * 4)
    settings = settings_of(family=family, pool_size=4)
    *_, step = fairlib.tune(generator, groups_of, PROMPTS, target, settings=settings)
    assert step.logits.shape == (8, 3) and step.shares.keys() == shares.keys()
    assert sum(step.shares.values()) == pytest.approx(1) and not step.skipped


def test_groups_of_prompts_have_targets_of_their_own(vocabulary):
    generator = generator_of(pipeline_of(vocabulary))
    scores = logits_of(REAL)
    target = fairlib.Target.by_group(
        {
            "HGG": fairlib.Target.shares({"F": 0.3, "M": 0.7}, scores),
            "LGG": fairlib.Target.shares({"F": 0.6, "M": 0.4}, scores),
        }
    )
    prompts = dict(zip(PROMPTS, ("HGG", "LGG"), strict=True))
    *_, step = fairlib.tune(generator, logits_of, prompts, target, settings=settings_of())
    assert set(step.prompts) == {0, 1}


class Untouchable(torch.nn.Module):
    """Stands for a model whose sampling would be noticed."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def __getattr__(self, name):
        if name == "predict_noise":
            raise AssertionError("sampled before the mistake was named")
        return super().__getattr__(name) if name == "generator" else getattr(self.generator, name)


BY_GROUP = {"HGG": fairlib.Target.shares(SHARES, [1.0, -1.0])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classifier": lambda x: logits_of(x)[:1]},
            r"returned \(1,\) for 2 images .* logits \[2\]",
        ),
        ({"classifier": lambda x: logits_of(x)[:, None]}, r"shape \(2, 1\); expected \[N\]"),
        ({"classifier": groups_of}, "of 3 groups but 2 have a share"),
        ({"classifier": lambda x: {"logits": x}}, "returned dict for 2 images"),
        ({"classifier": lambda x: logits_of(x) * float("nan")}, "logits are not finite"),
        ({"classifier": lambda x: logits_of(x.detach())}, "have no gradient"),
        ({"target": BY_GROUP}, r"by group \(HGG\); give prompts as"),
        (
            {"target": BY_GROUP, "prompts": dict.fromkeys(PROMPTS, "LGG")},
            "is of group 'LGG', which no target covers",
        ),
        (
            {
                "target": {**BY_GROUP, "LGG": BY_GROUP["HGG"]},
                "prompts": dict.fromkeys(PROMPTS, "HGG"),
            },
            "no prompt is of group 'LGG', which has a target",
        ),
        ({"target": fairlib.Target.shares(SHARES)}, "not the finite logits of real images of 'F'"),
        ({"prompts": PROMPTS[:1]}, "prompts_per_step is 2 but there are 1 prompts"),
    ],
)
def test_mistakes_are_named_at_once(vocabulary, change, message):
    parts = {
        "classifier": logits_of,
        "prompts": PROMPTS,
        "target": fairlib.Target.shares(SHARES, logits_of(REAL)),
    }
    generator = generator_of(pipeline_of(vocabulary))
    with pytest.raises(SettingsError, match=message), warnings.catch_warnings():
        fairlib.tune(Untouchable(generator), **parts | change, settings=settings_of())


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [2.0]], None, "expected"),
        ([1.0, -1.0], ["F", "X"], "labels of groups"),
        ([1.0, 2.0], None, "not the finite logits of real images of 'M'"),
        ([1.0, float("nan")], ["F", "M"], "finite logits of real images of 'M'"),
        (groups_of(REAL), None, "3 groups but 2"),
    ],
)
def test_targets_that_cannot_be_are_refused(scores, labels, message):
    with pytest.raises(SettingsError, match=message):
        fairlib.Target.shares(SHARES, scores, labels)
