"""Whether a distance is fair to both sexes."""

from __future__ import annotations

import numpy as np
import torch

from studies.brain.quality import distance_fairness


def test_a_space_that_sees_damage_in_one_sex_alone_is_unfair_and_one_that_sees_it_in_both_is_not():
    rng = np.random.default_rng(0)
    female = np.arange(400) % 2
    images = torch.from_numpy(rng.uniform(-0.5, 0.5, (400, 1, 16, 16)).astype(np.float32))
    sign = torch.from_numpy(female).float()

    def of_both(shown):
        return shown.flatten(1)[:, :20].numpy() + shown.var(dim=(1, 2, 3))[:, None].numpy() * 10

    def of_women(shown):
        return (
            of_both(images) * (1 - sign[:, None].numpy()) + of_both(shown) * sign[:, None].numpy()
        )

    spaces = {"fair": of_both, "blind to men": of_women}
    table = distance_fairness(spaces, images, female, {"noise": (0.3,)}, splits=6)
    fair, blind = table.set_index("space").unfairness[["fair", "blind to men"]]
    assert fair < 0.3 < 1.0 < blind
    row = table.set_index("space").loc["blind to men"]
    assert row.distance_F > 10 * abs(row.distance_M)
