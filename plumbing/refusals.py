"""
What distill.py and sample.py refuse before any work: knobs that do not go together, a teacher and a text that do not.
"""

import os

import data
from configurator import UserError
from plumbing.checkpoints import names_a_model
from plumbing.hardware import pick_device
from plumbing.published import refuse_used_export


def refuse_odd_distillation(cfg):
    kinds = ("lstm", "cnn", "gpt", "ngram")
    known = cfg.drafter in kinds or names_a_model(cfg.drafter)
    if (
        cfg.method in ("kd", "soft")
        and not known
        and "/" not in cfg.drafter
        and not cfg.drafter.endswith(".pt")
    ):
        raise UserError(
            f"drafter is {cfg.drafter!r}; choose one of {', '.join(kinds)}, or a checkpoint."
        )
    if cfg.method == "soft" and cfg.drafter == "ngram":
        raise UserError("An ngram counts texts: it learns with --method=kd, not from soft labels.")
    refuse_used_export(cfg.export, cfg.drafter)
    if cfg.vocab_parallel and ("WORLD_SIZE" not in os.environ or cfg.dropout):
        raise UserError(
            "vocab_parallel needs processes, torchrun --nproc_per_node=2 ..., and --dropout=0."
        )
    if cfg.fsdp and (cfg.vocab_parallel or cfg.kd_data == "student"):
        raise UserError(
            "fsdp goes with neither --vocab_parallel=True nor --kd_data=student. Use --fsdp=False."
        )
    if cfg.loss_dtype == "float64" and pick_device(cfg.device, "float32")[0].type == "mps":
        raise UserError(
            "loss_dtype is 'float64', which an Apple GPU does not have. Use --device=cpu."
        )
    if cfg.soft_data and not os.path.exists(cfg.soft_data):
        raise UserError(f"soft_data is {cfg.soft_data!r}, but there is no such file or folder.")
    if cfg.method == "soft" and cfg.soft_data and not cfg.dataset:
        raise UserError("--soft_data needs --dataset: its vocabulary, and its text to validate on.")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 or cfg.gradient_accumulation_steps > 1
    if cfg.method == "dimo" and (several or cfg.dropout):
        raise UserError(
            "dimo's networks take turns: one process, --gradient_accumulation_steps=1 --dropout=0."
        )
    if not cfg.kd_weight and not cfg.ce_weight:
        raise UserError("kd_weight and ce_weight are both 0: there is nothing to learn.")


def refuse_other_kind(cfg, teacher, causal):
    if teacher.config.causal != causal:
        kind = "autoregressive" if teacher.config.causal else "a masked diffusion model"
        raise UserError(
            f"The teacher {cfg.teacher} is {kind}; method {cfg.method!r} needs the other kind."
        )


def refuse_unfit(cfg, corpus, T, meta):
    """T: tokens of a text; meta: the teacher's."""
    if not data.same_vocabulary(corpus.meta, meta):
        raise UserError(
            f"The teacher {cfg.teacher} has another vocabulary than the dataset {cfg.dataset}."
        )
    if cfg.topk > corpus.meta["vocab_size"] and cfg.method == "soft":
        raise UserError(
            f"topk is {cfg.topk}, but the vocabulary has {corpus.meta['vocab_size']} tokens."
        )
    if min(len(corpus.train), len(corpus.val)) <= T:
        raise UserError(
            f"{cfg.dataset} has parts that are shorter than a context of {T}. Use a longer text."
        )
    if cfg.method == "sdtt" and cfg.sampler == "spread" and cfg.orig_steps > T:
        raise UserError(
            f"orig_steps is {cfg.orig_steps}, but there are {T} tokens to reveal. Use {T} or fewer."
        )


def refuse_odd_sampling(cfg, paths):
    if cfg.save and (
        len(paths) > 1 or cfg.prompt or cfg.infill or cfg.draft or cfg.trace or cfg.html
    ):
        raise UserError(
            "--save takes one --ckpt and --prefix, not --prompt, --infill, --draft, --trace or --html."
        )
    if not cfg.save and (cfg.prefix or cfg.continuations > 1 or cfg.dataset):
        raise UserError(
            "--prefix, --continuations and --dataset are for samples that --save writes. Use --prompt."
        )
    if cfg.export and len(paths) > 1:
        raise UserError("--export saves one model: give one --ckpt.")
    if "WORLD_SIZE" in os.environ and not cfg.save:
        raise UserError(
            "torchrun shares the work of --save=FILE.jsonl only. Run it as: python sample.py ..."
        )
    if cfg.html and cfg.trace:
        raise UserError(
            "--trace shows in a terminal what --html shows on a page. Give one of them."
        )
    if cfg.frontier and not cfg.html:
        raise UserError("--frontier is plotted on the page. Give --html=FILE too.")
