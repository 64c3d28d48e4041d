"""What a stranger gives the command line: classifiers, settings small enough for a test, and a table
of prompts by group with its shares and scores.
"""

import torch

CONFIG = {  # of a tiny CLIP
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
FEW = {"images_per_prompt": 2, "cache_size": 4, "cache_block": 2, "sampling_steps": 2,
       "replay_steps": 1}  # fmt: skip
GROUPED = {
    "prompts.csv": "prompt,group\naxial brain,old\nbrain,young\n",
    "shares.csv": "group,F,M\nold,0.4,0.6\nyoung,0.9,0.1\n",
    "scores.csv": "group,logit\nold,-2\nold,3\nyoung,-1\nyoung,1\n",
}
LABELLED = "image,group,logit,label\na,old,-2,F\nb,old,3,M\nc,old,2,F\na,young,-1,F\nd,young,1,M\n"


def bright():
    """A classifier: bright images are of the first group."""
    return lambda images: 20 * images.flatten(1).mean(1)


def dark():
    return lambda images: -20 * images.flatten(1).mean(1) - 1


def three():
    """A classifier of three groups."""
    return lambda images: torch.eye(3)[torch.arange(len(images)) % 3]


def broken():
    """A classifier whose logits overflow."""
    return lambda images: images.flatten(1).mean(1) * float("nan")
