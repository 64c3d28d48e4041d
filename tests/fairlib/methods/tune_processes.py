"""Five steps of tuning in float64, for `test_processes`: alone, or launched with others.

`python tune_processes.py OUT FAMILY...` writes, for each family, losses, weights and the record of
the last step of this process to `OUT/<family>-<place>.safetensors`.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest import SizeGenerator, classifier, embed  # noqa: E402

from fairlib.io import write_tensors  # noqa: E402
from fairlib.methods import processes  # noqa: E402
from fairlib.methods.alignment import AlignmentSettings, tune  # noqa: E402
from fairlib.methods.targets import Target  # noqa: E402


class DoubleGenerator(SizeGenerator):
    """In float64; images are float32, as everywhere."""

    def encode_prompts(self, prompts):
        return super().encode_prompts(prompts).double()

    def noise(self, seed, indices):
        return super().noise(seed, indices).double()


def main(out, families):
    torch.set_num_threads(1)
    place = processes.start()
    for family in families:
        write_tensors(Path(out) / f"{family}-{place}.safetensors", tuned(family))


def tuned(family):
    generator = DoubleGenerator().double()
    # the last layer of the example starts at zero, where the other layers have no gradient
    with torch.no_grad():
        for index, parameter in enumerate(generator.parameters()):
            parameter += 0.01 * (index + 1)
    scores = torch.cat([torch.linspace(1, 5, 50), torch.linspace(-5, -1, 50)])
    target = Target.shares({"F": 0.458, "M": 0.542}, scores)
    settings = AlignmentSettings(
        family=family,
        steps=5,
        prompts_per_step=2,
        images_per_prompt=6,
        cache_size=12,
        cache_block=6,
        pool_size=9,
        sampling_steps=5,
        replay_steps=2,
        warmup=1,
        learning_rate=0.02,
        micro_batch=4 if family == "quantile" else None,
    )
    steps = list(
        tune(generator, classifier, ["HGG", "LGG"], target, embed=embed, settings=settings)
    )
    counts = [[step.forward, step.backward, step.base] for step in steps]
    last = steps[-1]
    tensors = {
        "losses": torch.tensor(
            [[s.alignment, s.consistency, s.gradient_norm] for s in steps], dtype=torch.float64
        ),
        "counts": torch.tensor(counts),
        "logits": last.logits,
        "targets": last.targets,
        "images": last.images,
        "calls": torch.tensor(generator.calls),
    }
    weights = {f"weight/{name}": p.detach() for name, p in generator.named_parameters()}
    return tensors | weights


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
