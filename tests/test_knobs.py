"""
python -m pytest tests/test_knobs.py

knobs that scripts share are explained in the same words
"""

import glob
import os
import re

import pytest
from conftest import ROOT

import distill
import eval as evaluation
import sample
import train

SCRIPTS = sorted(glob.glob(f"{ROOT}/*.py") + glob.glob(f"{ROOT}/extras/*.py"))

# what a script reads and writes, and of what it makes how many, is each script's own
OWN = {"dataset", "init_from", "out_dir", "out", "ckpt", "teacher", "drafter", "draft", "evaluator"}
OWN |= {"samples", "prompt", "prompts", "task", "num_samples", "length", "draws", "eval_blocks"}
OWN |= {"sampler", "steps"}  # of a student that is trained, of a model that samples, of a table
# and these are, in these scripts
OWN_IN = {
    ("n_layer", "train"),  # the only one that trains more than drafters
    ("warmup_iters", "distill"),  # of every round
    ("max_iters", "dimo"),  # of two networks together
    ("dtype", "diffusion_drafter"),  # a GPT's cached step is fastest in float32
    ("gamma", "diffusion_drafter"),  # no trials
    ("gamma", "rouge"),
    *(("batch_size", name) for name in ("dimo", "retokenize", "rouge")),  # of one process
    ("divergence", "t5"),  # mse is of SDTT
    *(("compile", name) for name in ("sample", "eval", "markov", "mauve", "page", "save_samples")),
}


def knobs_of(path):
    """A script -> {knob: the comment beside it}, {} if it has no knobs."""
    with open(path, encoding="utf-8") as f:
        block, configured, _ = f.read().partition("\ncfg = configure(")
    if not configured:
        return {}
    block = block[block.index("\n# -----") :]
    return dict(re.findall(r"^([a-z]\w*) = .*?(?:  # (.*))?$", block, re.MULTILINE))


@pytest.mark.parametrize("script", [train, distill, sample, evaluation])
def test_every_knob_of_a_script_stands_in_its_block(script):
    assert knobs_of(script.__file__).keys() == vars(script.cfg).keys()


def test_knobs_that_two_scripts_share_have_the_same_comment():
    seen = {}  # knob: (its comment, the first script that has it)
    for path in SCRIPTS:
        script = os.path.basename(path).removesuffix(".py")
        for knob, comment in knobs_of(path).items():
            if knob in OWN or (knob, script) in OWN_IN:
                continue
            expected, first = seen.setdefault(knob, (comment, script))
            assert comment == expected, f"{knob} in {first}.py and {script}.py"
    assert len(seen) > 50


@pytest.mark.parametrize("script", [train, distill])
def test_training_and_distilling_have_all_of_the_loops_knobs(script):
    loop = """batch_size gradient_accumulation_steps learning_rate warmup_iters min_lr weight_decay
        beta2 grad_clip dropout ema eval_interval eval_iters sample_interval seed device dtype
        attention compile fsdp wandb"""
    assert set(loop.split()) <= vars(script.cfg).keys()
