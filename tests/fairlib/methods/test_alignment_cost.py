"""The counters of the cost benchmark: deterministic, so they are asserted."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location(
        "alignment_cost", BENCHMARKS / "alignment_cost.py"
    )
    module, before = importlib.util.module_from_spec(spec), list(sys.path)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def study(cost):
    return cost.make_study(None, steps=8, prompts=2, images=3)


def test_the_published_order_takes_six_evaluations_a_step(cost, study):
    counted = study.count(study.published_order)
    images, steps = 6, 8
    assert (counted.forward, counted.recompute, counted.backward) == tuple(
        images * steps * k for k in (3, 1, 1)
    )
    assert counted.cost == 6 * images * steps


def test_replay_of_two_in_eight_takes_under_a_third(cost, study):
    reference, coefficients = study.frozen_embeds(), study.solver.chain_coefficients()[1]
    importance = cost.rp.choose_steps(
        8, 2, "importance", coefficients, torch.Generator().manual_seed(0), 6
    )
    counted = study.count(lambda: study.replayed(reference, importance, coefficients))
    assert (counted.forward, counted.recompute, counted.backward) == (6 * (8 + 2), 0, 6 * 2)
    assert counted.cost <= study.count(study.published_order).cost / 3


def test_the_figures_hold_together(cost, study):
    result = cost.compare(study, 2, repeats=0, draws=2, memory_steps=(2, 6))
    assert result["evaluations_ratio"] == pytest.approx((8 + 3 * 2) / (6 * 8))
    assert result["cosine_of_all_steps_to_published"] == pytest.approx(1, abs=1e-5)
    assert 0 < result["gradient_cosine_lowest"] <= result["gradient_cosine"] < 1
    assert result["memory_ratio"] <= 1.1
    assert cost.BOUNDS.keys() <= result.keys()


def test_memory_is_counted_as_it_is_held(cost):
    weights = torch.ones(1000, requires_grad=True)

    def work():
        for _ in range(3):
            (weights * torch.rand(1000)).sin().sum().backward()

    held = cost.peak_saved_bytes(work)
    # one factor and the argument of the sine, each time let go before the next
    assert held == 2 * 4000


def test_times_are_medians_of_all_rounds_but_the_first(cost, monkeypatch):
    clock = iter(np.cumsum([0, 9, 0, 9, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6]))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert cost.seconds({"a": lambda: None, "b": lambda: None}, 3) == {"a": 3, "b": 4}
