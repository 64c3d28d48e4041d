"""What stage one needs of a GPU's memory: the counter, and the table of the book."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def memory():
    path = ROOT / "benchmarks" / "finetune_memory.py"
    spec = importlib.util.spec_from_file_location("finetune_memory", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_storages_count_while_they_live(memory):
    given = torch.ones(100)
    with memory.Live() as live:
        first = given + 1
        view = first[:10]
        assert live.now == 400
        second = first.double()
        assert live.now == 1200
        del first, second
        assert live.now == 400  # the view holds it
        del view
        assert (live.now, live.peak) == (0, 1200)


def test_a_step_keeps_what_the_chain_rule_needs(memory):
    """Three layers without bias: the input of each, and in the backward pass all gradients."""
    layers = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3)))
    with memory.Live() as live:
        loss = layers(torch.ones(8, 32)).sum()
        assert live.now == 4 * (3 * 8 * 32 + 1)  # what each layer was given, and the loss
        loss.backward()
    weights = 3 * 4 * 32 * 32
    assert live.now >= weights and live.peak >= weights + 4 * 8 * 32


def test_fused_attention_keeps_no_matrix(memory):
    query = torch.empty(1, 2, 64, 8, requires_grad=True)
    with memory.as_on_a_gpu(), memory.Live() as live:
        out = nn.functional.scaled_dot_product_attention(query, query, query)
        assert live.peak == 4 * (2 * 64 * 8 + 2 * 64) and out.shape == query.shape
        out.sum().backward()
    assert query.grad.shape == query.shape


def lora_size(memory, rank):
    """Weights of the two factors of every layer that has them, by hand."""
    with torch.device("meta"):
        denoiser, _ = memory._networks()
    total = 0
    for name, module in denoiser.named_modules():
        if re.search(r"\.(to_[qkv]|to_out\.0|conv[12])$", name):
            fan_out, fan_in = module.weight.shape[0], module.weight[0].numel()
            total += rank * (fan_in + fan_out)
    return total


@pytest.mark.slow
def test_the_table_of_the_book_is_what_is_counted(memory):
    text = (ROOT / "book" / "start.md").read_text()
    found = re.findall(
        r"^\| (LoRA|whole)\b.*?\| (\d) \| ([\d.]+) GB \| ([\d.]+) GB \|$", text, re.M
    )
    table = {(kind, int(batch)): (kept, again) for kind, batch, kept, again in found}
    assert len(table) == 6
    for kind, batch in (("LoRA", 8), ("whole", 1)):
        lora = 16 if kind == "LoRA" else 0
        counts = [memory.count(lora, torch.float16, batch, again) for again in (False, True)]
        assert tuple(f"{count.total / 1e9:.1f}" for count in counts) == table[kind, batch]
        spare = 4 * (83_653_863 + 123_060_480)  # autoencoder and text encoder
        weights = 859_520_964
        assert counts[0].frozen == spare + (2 * weights if lora else 0)
        assert counts[0].trained == 16 * (lora_size(memory, lora) if lora else weights)
        assert counts[1].step < counts[0].step
        t4 = 14.5 * 2**30
        assert (counts[0].total < t4) == bool(lora) and (counts[1].total < t4) == bool(lora)
