"""Streams are unique, and every generator is made of one."""

import ast
from pathlib import Path

import numpy as np
import torch

from fairlib.rng import Stream, derived_seeds, numpy_rng, torch_rng

ROOT = Path(__file__).parents[2]
MADE_HERE = ROOT / "fairlib" / "rng.py"
BARE = {"default_rng", "SeedSequence"}
STREAMED = {"torch_rng", "numpy_rng", "derived_seeds", "draw_rows"}


def test_streams_are_unique_and_those_of_stored_results_keep_their_numbers():
    assert len({*Stream.__members__.values()}) == len(Stream.__members__)
    kept = Stream.PROMPT_ORDER, Stream.NOISE_ORDER, Stream.REPLAY_STEPS, Stream.CLASS_DRAWS
    assert [*kept, Stream.NOISE, Stream.ROW_ORDER] == [0, 1, 2, 3, 11, 7]


def test_each_stream_says_who_draws_from_it():
    lines = MADE_HERE.read_text().splitlines()
    members = [line for line in lines if line.strip().split(" = ")[0] in Stream.__members__]
    assert len(members) == len(Stream) and all("  # " in line for line in members)


def test_generators_are_functions_of_seed_stream_and_counters():
    keys = [(0, Stream.NOISE, 1), (0, Stream.NOISE, 2), (1, Stream.NOISE, 1), (0, Stream.CLIP, 1)]
    for make, draw in (
        (torch_rng, lambda g: torch.randn(3, generator=g).tolist()),
        (numpy_rng, lambda g: g.normal(size=3).tolist()),
    ):
        drawn = [tuple(draw(make(*key))) for key in keys]
        assert len({*drawn}) == 4 and drawn[0] == tuple(draw(make(*keys[0])))
    assert derived_seeds(3, Stream.REPLAY_STEPS, 5) == [
        int(np.random.SeedSequence([3, 2, 5]).generate_state(1)[0])
    ]
    old = np.random.SeedSequence([4, 11, 9]).generate_state(2, np.uint32)
    state = torch.Generator().manual_seed(int(old[0]) << 31 ^ int(old[1]))
    assert torch.equal(torch_rng(4, Stream.NOISE, 9).get_state(), state.get_state())


def is_number(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def bare_streams(path):
    """Lines of calls that make a generator of a list with a literal number, or name a stream by
    its number.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        given = node.args[0] if node.args else None
        listed = given.elts if isinstance(given, ast.List | ast.Tuple) else []
        literal = name in BARE and any(map(is_number, listed))
        if literal or (name in STREAMED and any(map(is_number, node.args[1:2]))):
            yield f"{path}:{node.lineno}"


def test_no_generator_is_made_of_a_bare_number():
    files = [path for path in (ROOT / "fairlib").rglob("*.py") if path != MADE_HERE]
    assert len(files) > 20 and [line for path in files for line in bare_streams(path)] == []


def test_a_bare_number_is_noticed(tmp_path):
    path = tmp_path / "bare.py"
    path.write_text("a = np.random.default_rng([seed, 41])\nb = torch_rng(seed, 11, step)\n")
    assert list(bare_streams(path)) == [f"{path}:1", f"{path}:2"]
