"""The benchmark of GPUs, rehearsed on tiny models: its table, what it does where memory or minutes
are short, and the count of memory against what operations really make.
"""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
NAMES = ("counting", "stand_ins", "memory", "sizes", "gpu")


@pytest.fixture(scope="module")
def gpu():
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    import gpu as module

    yield module
    sys.path[:] = before
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def card(gpu):
    return gpu.Card("cpu")


@pytest.fixture
def rows(gpu, card, monkeypatch):
    """Rows of one batch of two at two solver steps, when `published` is replaced and time is up."""

    def make(published=None, seconds=1000.0):
        if published:
            monkeypatch.setattr(gpu.Contest, "published", published)
        return gpu.tuning_rows(card, gpu.TINY, [2], [2], time.monotonic() + seconds)

    return make


def test_small_fills_the_whole_table_in_under_a_minute(gpu, tmp_path, capsys):
    started = time.process_time()
    gpu.main(["--small", "--write", str(tmp_path / "gpu.json")])
    assert time.process_time() - started < 60
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["about"]["torch"] and found["about"]["device"]
    works = [(row["model"], row["work"]) for row in found["rows"]]
    assert works[:2] == [("weights/brain", "tuning, full"), ("tiny", "fine-tuning, LoRA")]
    tuning = [row for row in found["rows"] if row["work"].startswith("tuning")]
    assert [(row["batch"], row["solver_steps"]) for row in tuning[1:]] == [
        (2, 2),
        (2, 4),
        (3, 2),
        (3, 4),
    ]
    assert all(row["published_seconds"] > 0 < row["ours_gb"] for row in tuning)
    # at two solver steps all are replayed, and the gradient is that of the published order
    assert [row["cosine"] for row in tuning[1::2]] == pytest.approx([1, 1], abs=1e-5)
    assert all(0.9 < row["cosine"] < 1.00001 for row in tuning)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 1 + len(found["rows"]) and "out of memory" not in printed


class TestShortOfMemory:
    def test_the_largest_micro_batch_that_fits_is_taken(self, gpu, rows):
        published = gpu.Contest.published

        def needs_half(contest):
            if contest.run.settings.micro_batch > 1:
                raise torch.OutOfMemoryError("none left")
            published(contest)

        [row] = rows(needs_half)
        assert row["micro_batch"] == 1 and row["ours_seconds"] > 0

    def test_a_size_that_never_fits_says_so(self, rows):
        def never(contest):
            raise torch.OutOfMemoryError("none left")

        [row] = rows(never)
        assert row["note"] == "out of memory" and "ours_seconds" not in row

    def test_a_row_that_does_not_fit_says_so_and_the_next_is_tried(self, gpu, card):
        def short():
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

        assert gpu.attempt(card, {"batch": 8}, short) == {"batch": 8, "note": "out of memory"}

    def test_other_errors_are_not_hidden(self, rows):
        def wrong(contest):
            raise RuntimeError("mat1 and mat2 have other shapes")

        with pytest.raises(RuntimeError, match="other shapes"):
            rows(wrong)


def test_rows_that_would_pass_the_minutes_are_left(rows):
    [row] = rows(seconds=0)
    assert row["note"] == "no minutes left" and "ours_seconds" not in row


class TestMemory:
    def test_live_bytes_follow_what_is_made_and_let_go(self, gpu):
        with gpu.LiveBytes() as counted:
            one = torch.zeros(1000)
            view = one[:10]
            two = one + 1
            del one, two
            after = counted.live
            three = torch.zeros(10)
        assert (counted.peak, after) == (8000, 4000), "the view keeps the first alive"
        assert counted.live == 4040 and len(view) == len(three) == 10

    def test_the_count_is_that_of_a_real_step(self, gpu):
        """The fakes' sum against the operations of a whole step, at several numbers of steps."""
        from memory import step_bytes, transients

        size, batch = gpu.TINY, 4
        generator = gpu.SizedGenerator(size)
        classifier, embed = gpu.readers(size)
        parts = transients(size, batch, torch.float32)
        real = {}
        for steps in (10, 20):
            settings = gpu.tuning_settings(steps, batch, None, trainable="lora")
            contest = gpu.Contest.of(generator, classifier, embed, settings)
            contest.run.cache.all_logits(0)
            with gpu.LiveBytes() as counted:
                contest.ours()
            real[steps] = counted.peak + parts["parameters"] + parts["training"]
            expected = step_bytes(size, parts, batch, steps)
            assert real[steps] == pytest.approx(expected, rel=0.1)
        latents = 10 * batch * 4 * 4 * size.latent**2
        assert real[20] - real[10] == pytest.approx(latents, rel=0.05)
