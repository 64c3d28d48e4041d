"""A byte-pair vocabulary learnt from captions, in CLIP's own two file formats.

open_clip reads a gzipped list of merges, transformers a `vocab.json` with `merges.txt`; both must
give the same ids, so that the text tower trained by one can be the text encoder of the other (a
test holds them to it).
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

CONTEXT_LENGTH = 32


def learn_merges(captions: list[str], count: int = 400) -> list[tuple[str, str]]:
    """The `count` most useful merges, most frequent pair first (ties: alphabetical), on CLIP's word
    pieces.
    """
    import regex

    pieces = regex.compile(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    words = Counter(piece for text in captions for piece in pieces.findall(text.lower()))
    split = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(parts, best) for word, parts in split.items()}
    return merges


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found, i = [], 0
    while i < len(parts):
        if parts[i : i + 2] == pair:
            found.append("".join(pair))
            i += 2
        else:
            found.append(parts[i])
            i += 1
    return tuple(found)


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's order: 256 bytes, the same at a word's end, the merges, start and end of text."""
    from open_clip.tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    tokens = [
        *symbols,
        *(s + "</w>" for s in symbols),
        *("".join(m) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: i for i, token in enumerate(tokens)}


def write_vocabulary(folder: str | Path, merges: list[tuple[str, str]]) -> None:
    """Write `vocab.json`, `merges.txt` (transformers) and `bpe.txt.gz` (open_clip) into
    `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)])
    (folder / "merges.txt").write_text(lines + "\n")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False))
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def pipeline_tokenizer(folder: str | Path, length: int = CONTEXT_LENGTH):
    """transformers' CLIPTokenizer of a folder written by `write_vocabulary`; longer texts are cut
    at `length` tokens.

    Padding is id 0, as in open_clip; that id is the exclamation mark, so one in a prompt reads as
    padding.
    """
    from transformers import CLIPTokenizer

    return CLIPTokenizer(
        str(Path(folder) / "vocab.json"),
        str(Path(folder) / "merges.txt"),
        pad_token="!",
        model_max_length=length,
    )


def clip_tokenizer(folder: str | Path, length: int = CONTEXT_LENGTH):
    """open_clip's SimpleTokenizer on the same vocabulary: list of texts -> ids [N, length]."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(Path(folder) / "bpe.txt.gz"), context_length=length)
