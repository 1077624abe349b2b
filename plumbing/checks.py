"""
What scripts check before any work: what cannot be sampled, knobs of distill.py that do not go
together, a teacher and a text that do not.
"""

import data
from configurator import UserError, check_at_least, choose

# knobs with which text is drawn, and their least values
LEAST = {
    "num_samples": 1,
    "batch_size": 1,
    "length": 0,
    "steps": 0,
    "temperature": 0,
    "cooling": 0,
    "top_k": 0,
    "gamma": 0,
}


def check_sampling_knobs(cfg):
    """Raises UserError for a value with which nothing can be sampled."""
    # a script need not have them all, and steps that are a list are rows of its table
    numbers = {name for name, value in vars(cfg).items() if isinstance(value, int | float)}
    check_at_least(cfg, **{name: n for name, n in LEAST.items() if name in numbers})
    if "top_p" in numbers and not 0 < cfg.top_p <= 1:
        raise UserError(f"top_p is {cfg.top_p}; it must be above 0 and at most 1.")


def check_cooling(models, cfg):
    """Raises UserError where nothing has steps between which the temperature could fall."""
    if cfg.cooling != 1 and all(model.config.causal for model in models):
        raise UserError(
            f"cooling is {cfg.cooling}, but a GPT has no steps of diffusion: use --temperature."
        )


def check_distillation(cfg):
    choose("method", cfg.method, ("sdtt", "kd"))
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    choose("divergence", cfg.divergence, ("kl_bwd", "kl_fwd", "tvd", "mse", "jsd", "nla"))
    choose("sampler", cfg.sampler, ("ancestral", "analytic", "spread"))
    choose("kd_data", cfg.kd_data, ("dataset", "teacher", "student"))
    choose("smoothing", cfg.smoothing, ("kneser_ney", "laplace"))
    check_at_least(cfg, teacher_steps=2, orig_steps=1, rounds=1, ngram_n=1, pseudo_tokens=1)
    if not cfg.kd_temp > 0:
        raise UserError(f"kd_temp is {cfg.kd_temp}; it must be above 0.")
    if cfg.method == "kd" and cfg.divergence == "mse":
        raise UserError(
            "divergence 'mse' is SDTT's: on a drafter's log-probabilities it hardly learns."
        )
    if cfg.fsdp and cfg.kd_data == "student":
        raise UserError("fsdp does not go with --kd_data=student. Use --fsdp=False.")


def check_teacher(name, teacher, causal):
    if teacher.config.causal != causal:
        kind = "a GPT" if teacher.config.causal else "a masked diffusion model"
        method = "kd" if causal else "sdtt"
        raise UserError(
            f"The teacher {name} is {kind}; --method={method} needs the other kind: --teacher=CKPT."
        )


def check_text(cfg, corpus, T, meta):
    """T: tokens of a text; meta: the teacher's."""
    if not data.same_vocabulary(corpus.meta, meta):
        raise UserError(
            f"The teacher {cfg.teacher} has another vocabulary than the dataset {cfg.dataset}."
        )
    if min(len(corpus.train), len(corpus.val)) <= T:
        raise UserError(f"{cfg.dataset} has parts of less than a context, {T} tokens: too short.")
    if cfg.method == "sdtt" and cfg.sampler == "spread" and cfg.orig_steps > T:
        raise UserError(
            f"orig_steps is {cfg.orig_steps}, but there are {T} tokens to unmask. Use {T} or fewer."
        )
