from fairlib.models.tokenizer import (
    clip_tokenizer,
    learn_merges,
    pipeline_tokenizer,
    write_vocabulary,
)

CAPTIONS = [
    "Axial T1-weighted MRI of the brain.",
    "Brain MRI, axial FLAIR sequence: left hemispheric glioblastoma.",
    "A 54-year-old woman.",
    "T2 weighted axial MR image of the brain with a low-grade glioma on the right side.",
]


def test_the_most_frequent_pair_is_merged_first():
    assert learn_merges(["abab ab", "ab"], count=1) == [("a", "b</w>")]
    assert (
        learn_merges(["xy zz", "xyq"], count=1) == [("x", "y")]
        or learn_merges(["xyq xyq"], count=1)[0][0] == "x"
    )


def test_both_tokenizers_give_the_same_ids(tmp_path):
    merges = learn_merges(CAPTIONS, count=60)
    write_vocabulary(tmp_path, merges)
    texts = [*CAPTIONS, "", "A wörd 99 never seen?", "left right " * 40]
    ours = clip_tokenizer(tmp_path)(texts)
    theirs = pipeline_tokenizer(tmp_path)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert ours.shape == (len(texts), 32)
    assert (ours == theirs).all()


def test_a_frequent_word_becomes_one_token(tmp_path):
    write_vocabulary(tmp_path, learn_merges(["brain brain brain of"], count=50))
    ids = clip_tokenizer(tmp_path)(["brain"])[0]
    assert int((ids != 0).sum()) == 3  # start, brain, end
