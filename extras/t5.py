"""
Encoder-decoders such as T5: one reads a source, and its decoder writes a text. Drafters for the
decoder, and how much faster it writes with them. FastLLM's experiment: FLAN-T5 summarises CNN/Daily
Mail with drafters from n-gram to T5-small, trained on the text or distilled.

A drafter learns, counts, is measured, and drafts (lessons/6_speculation.md has it without a
download):
$ T5=data/cnn_dailymail_t5
$ python data/cnn_dailymail/prepare.py --tokenizer=hf:google/flan-t5-small --out_dir=$T5
$ python -m extras.t5 --target=hf:google/flan-t5-xl --dataset=$T5 --drafter=lstm --out_dir=out/lstm
$ python -m extras.t5 --target=hf:google/flan-t5-xl --dataset=$T5 --drafter=ngram --out_dir=out/ng
$ python -m extras.t5 --task=eval --target=hf:google/flan-t5-xl --prompts=$T5/prompts.jsonl \
    --draft=out/lstm/ckpt.pt,out/ng/ngram.txt,hf:google/flan-t5-small,lookup
$ python -m extras.t5 --task=sample --target=hf:google/flan-t5-xl --prompt='summarize: FILE' \
    --draft=lookup

A drafter of our own sees what the decoder has written, look-up copies from the source as well, and
a drafter with an encoder reads the same source. KD as in distill.py (arXiv 2310.08461).
"""

import functools
import math
import os
import time
import types

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import distill
from configurator import (
    UserError,
    check_at_least,
    choose,
    configure,
    print_once,
)
from distill import divergence_between
from drafters import Lookup, check_context, fit_ngram, load_drafter
from extras.huggingface import Cache, HuggingFaceModel, about, has_encoder
from extras.rouge import check_package, rouge_2_f1
from loop import check_loop, fit, hooks, validator
from metrics import (
    GAMMAS,
    Rounds,
    acceptance,
    best_gamma,
    choose_gamma,
    mean_and_error,
    measure_costs,
    overlap,
    predicted_speedup,
    tokens_per_forward,
    trial,
)
from plumbing.checkpoints import (
    load_checkpoint,
    load_weights,
    paths_of,
    weights_of,
    without_weights,
)
from plumbing.checks import check_sampling_knobs
from plumbing.hardware import frozen_dtype, pick_device, pick_for_sampling
from plumbing.parallel import join_processes, leave_processes, on_first_process
from plumbing.randomness import seeded
from plumbing.report import table
from plumbing.runs import check_folder, check_origin, checkpoint_to_resume, release, write_chunks
from sample import settings_of
from speculative import Network, generate, speculate

# --------------------------------------------------------------------------------------------------
task = "kd"  # 'kd' (a drafter learns) | 'sample' | 'eval' (how good drafters are, and ROUGE-2)
target = "hf:google/flan-t5-small"  # an encoder-decoder, hf:NAME_OR_FOLDER or a ckpt.pt of task kd
# kd
dataset = "cnn_dailymail_t5"  # rows of data/cnn_dailymail: a name under data/, or a folder
out_dir = "out/t5"  # gets ckpt.pt or ngram.txt
init_from = "teacher"  # 'teacher' | 'resume' (out_dir)
drafter = "lstm"  # 'lstm' | 'cnn' | 'gpt' | 'ngram' (counts texts) | a checkpoint or hf:NAME
learn = "teacher"  # 'teacher': from the target | 'text': from the dataset's text alone, a baseline
divergence = "kl_fwd"  # 'kl_bwd' | 'kl_fwd' | 'tvd' | 'jsd' | 'nla', of drafter and target
kd_data = "dataset"  # 'dataset' | 'teacher' (it writes pseudo_tokens) | 'student' (on-policy)
pseudo_tokens = 1_000_000  # written by the teacher to out_dir/pseudo.bin
n_layer = 1  # of a new drafter
n_head = 4
n_embd = 128
ngram_n = 3  # of an n-gram, from 1 to 8
smoothing = "kneser_ney"  # 'kneser_ney' | 'laplace', of an n-gram
# sample and eval
draft = ""  # what drafts: several for eval, by commas; a checkpoint, hf:NAME, ngram.txt or lookup
prompt = ""  # sample: the source, or FILE:path
prompts = ""  # eval: a prompts.jsonl of data/cnn_dailymail
num_samples = 4  # sample: texts; eval: prompts, at least 7
length = 127  # tokens that are written at most
gamma = 0  # tokens proposed at a time; 0: the fastest in a short trial, which may be none
temperature = 1.0  # 0: always the most probable token
top_k = 0  # autoregressive only: keep the k most probable tokens; 0: all
top_p = 1.0  # keep the most probable tokens that hold this much probability
out = "out/t5/eval"  # folder for eval.json and eval.txt
# optimizer: AdamW
batch_size = 16  # sequences per forward pass, on each process
gradient_accumulation_steps = 1  # forward passes per step, over all processes
max_iters = 10000  # optimizer steps
learning_rate = 2e-3
warmup_iters = 200  # steps, linear, up to learning_rate
min_lr = 0.02  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.1  # of matrices
beta2 = 0.99  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
dropout = 0.0  # of the model that is trained
ema = 0.999  # decay of the averaged weights, which are validated and sampled; 0: off
# the run
eval_interval = 1000  # steps between validations, which save the checkpoint
eval_iters = 4  # validation batches
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "auto"  # 'auto' (on cuda) | 'on' | 'off': torch.compile
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


class EncoderDecoder(HuggingFaceModel):
    """T5 and its kin. What others call a model is its decoder, once it has encoded a source."""

    kind = "AutoModelForSeq2SeqLM"

    def __init__(self, path, attention="sdpa", dtype=torch.float32):
        super().__init__(path, attention, dtype)
        if hasattr(self.inner, "final_logits_bias"):
            raise UserError(f"{path} adds a bias outside its head, as BART does: not supported.")
        self.check_and_take_head_out()
        self.use_flash()

    def encode(self, source):
        """(B, S) int64, short ones padded at the end -> the decoder, conditioned on these."""
        self.check_length(source.size(1))
        mask = (source != self.inner.config.pad_token_id).long()  # (B, S)
        encoder = self.inner.get_encoder()
        with self.without_float16():
            states = encoder(input_ids=source, attention_mask=mask).last_hidden_state
        return ConditionedDecoder(self, states, mask)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def check_and_take_head_out(self):
        """Raises UserError for a head or a cache of another kind, as huggingface.Decoder does."""
        V = self.config.vocab_size
        source = torch.arange(3)[None] % V  # (1, 3)
        x = torch.arange(3, 11)[None] % V  # (1, 8)
        decoder = self.encode(source)
        found = self.inner(
            decoder_input_ids=x,
            encoder_outputs=(decoder.states,),
            attention_mask=decoder.mask,
            use_cache=True,
        )
        cache = getattr(found, "cache", None)
        self.check_cache(getattr(cache, "self_attention_cache", cache))
        self.take_head_out()
        h = decoder.hidden(x)
        self.check_equal("logits", self.head(h), found.logits[..., :V])
        cache = decoder.new_cache()
        decoder.hidden(x[:, :7], cache)
        cache.length = 5
        self.check_equal("cached states", decoder.hidden(x[:, 5:], cache), h[:, 5:])


class ConditionedDecoder:
    """The decoder of an encoder-decoder that has read its sources: a GPT to those who call it."""

    def __init__(self, model, states, mask):
        self.model = model
        self.states = states  # (B, S, C), the encoder's
        self.mask = mask  # (B, S), 0 where a source is padded
        self.config = model.config
        self.wte = model.wte
        self.head = model.head

    def hidden(self, idx, cache=None):
        """(B, T) int64, the decoder's -> (B, T, C). idx follow the cached tokens, if any."""
        end = idx.size(1) + (cache.length if cache is not None else 0)
        self.model.check_length(end)
        with self.model.without_float16():
            h = self.model.inner(
                decoder_input_ids=idx,
                encoder_outputs=(self.states,),
                attention_mask=self.mask,
                use_cache=cache is not None,
                cache=None if cache is None else cache.cropped(),
            ).logits  # the head is out: this is what enters it
        if cache is not None:
            cache.length = end
        return h

    def __call__(self, idx):
        """(B, T) int64 -> (B, T, V) logits."""
        return self.head(self.hidden(idx))

    def new_cache(self, batch_size=1):
        import transformers

        # what the decoder has written, and what it read of the source, which is never cropped
        parts = transformers.DynamicCache(), transformers.DynamicCache()
        return Cache(transformers.EncoderDecoderCache(*parts))


class SourceLookup:
    """Prompt lookup that copies from the source as well, in front of what the decoder wrote."""

    def __init__(self, lookup, source):
        self.lookup = lookup
        self.source = source  # (S,)

    def propose(self, x, n, settings, generator):
        """(T,) int64 -> drafts (g,), q (g, V): see speculative.py."""
        return self.lookup.propose(torch.cat([self.source, x]), n, settings, generator)


def condition(model, source):
    """Any model, (B, S) int64 -> what writes: if it has an encoder, it has read the source."""
    if isinstance(model, EncoderDecoder):
        return model.encode(source)
    return model


def condition_drafter(drafter, source):
    """A drafter, (S,) int64 -> one that reads the source too, or copies from it, if it can."""
    if isinstance(drafter, EncoderDecoder):
        return Network(drafter.encode(source[None]))
    if isinstance(drafter, Lookup):
        return SourceLookup(drafter, source)
    return drafter


# --------------------------------------------------------------------------------------------------
# loading


def load_model(path, device="cpu", attention="sdpa", dtype=torch.float32):
    """hf:NAME_OR_FOLDER or a ckpt.pt of this file -> EncoderDecoder, the checkpoint's dict."""
    if not path.startswith("hf:"):
        return from_checkpoint(load_checkpoint(path), device, attention, dtype)
    if not has_encoder(path):
        raise UserError(f"{path} has no encoder. It runs with sample.py and eval.py.")
    return EncoderDecoder(path, attention, dtype).to(device), about(path)


def from_checkpoint(saved, device="cpu", attention="sdpa", dtype=torch.float32):
    """A checkpoint's dict -> EncoderDecoder with averaged weights, the dict without weights."""
    path = str(saved["model_config"].get("arch"))
    if not path.startswith("hf:"):
        raise UserError(f"The checkpoint holds {path!r}, not an encoder-decoder.")
    model = EncoderDecoder(path, attention, dtype)
    load_weights(model, weights_of(saved))
    return model.to(device), without_weights(saved)


def reads_source(path):
    """Whether a name or a file is an encoder-decoder."""
    if os.path.isfile(path) and path.endswith(".pt"):
        path = str(load_checkpoint(path)["model_config"].get("arch"))
    return path.startswith("hf:") and has_encoder(path)


def load_any_drafter(path, target, meta, cfg):
    """-> a drafter as those of drafters.py, or an EncoderDecoder: see condition_drafter."""
    if not reads_source(path):
        drafter = load_drafter(path, target, meta, cfg.attention)
        check_context(drafter, path, cfg.length)
        return drafter
    weight = target.wte.weight
    model, checkpoint = load_model(path, weight.device, cfg.attention, weight.dtype)
    if not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(f"The drafter {path} has another vocabulary than the target.")
    return model


# --------------------------------------------------------------------------------------------------
# kd: a drafter learns what the target writes of a source


def is_written(y, eot):
    """(B, T) int64 -> (B, T) bool: up to the first end-of-text. More of them only fill a row."""
    end = y == eot
    return end.cumsum(dim=1) - end.long() == 0


def t5_loss(drafter, rows, generator, target, n_source, eot, divergence="kl_fwd"):
    """
    (B, S + T) int64: sources, then texts from the start token on -> nats, a mean over written
    tokens: the divergence of drafter from target or, if target is None, the cross-entropy with the
    text.
    """
    source = rows[:, :n_source]  # (B, S)
    x = rows[:, n_source:-1]  # (B, T - 1), from the start token on
    y = rows[:, n_source + 1 :]  # (B, T - 1)
    written = is_written(y, eot)  # (B, T - 1), N of them
    logits = condition(drafter, source)(x)[written].float()  # (N, V)
    if target is None:
        return F.cross_entropy(logits, y[written])
    with torch.no_grad():
        log_target = condition(target, source)(x)[written].float().log_softmax(-1)  # (N, V)
    return divergence_between(logits.log_softmax(-1), log_target, divergence).mean()


def load_rows(dataset):
    """-> corpus, S, T: the tokens of a source, and of a text with its start token."""
    corpus = data.load(dataset)
    meta = corpus.meta
    if "row" not in meta:
        raise UserError(
            f"{dataset} has no rows of a source and a text. Make some with: "
            "python data/cnn_dailymail/prepare.py --tokenizer=hf:NAME --out_dir=FOLDER"
        )
    return corpus, meta["source_tokens"], meta["row"] - meta["source_tokens"]


@torch.no_grad()
def with_text_of(model, starts, n_new, generator, eot):
    """(B, S + 1) int64, sources and start tokens -> (B, S + 1 + n_new): what a model writes."""
    source = starts[:, :-1]
    decoder = condition(model, source)
    text = generate(decoder, starts[:, -1:], n_new, generator=generator, eos=eot)
    return torch.cat([source, text], dim=1)


def write_pseudo_data(target, corpus, cfg, device, rows_at_once=64):
    """
    -> (n, row) memory-mapped rows: sources of the dataset with what the target writes of them,
    pseudo_tokens in all, in out_dir/pseudo.bin. If it is interrupted, the next call goes on.
    """
    meta = corpus.meta
    S = meta["source_tokens"]
    n_new = meta["row"] - S - 1

    autocast, _ = pick_for_sampling(True, cfg.device, cfg.dtype)

    def rows(i):
        starts = data.batch(corpus.train, rows_at_once, S + 1, seeded(cfg.seed, "start", i))
        generator = seeded(cfg.seed, "pseudo", i, device=device)
        with autocast:
            return with_text_of(target, starts.to(device), n_new, generator, meta["eot"])

    path = os.path.join(cfg.out_dir, "pseudo.bin")
    n_chunks = math.ceil(cfg.pseudo_tokens / (rows_at_once * n_new))
    dtype = data.token_dtype(meta["vocab_size"])
    return write_chunks(path, n_chunks, (rows_at_once, meta["row"]), dtype, rows)


def count_ngrams(pseudo, corpus, cfg):
    """Counts the texts of the target or, if pseudo is None, the dataset's: not the sources."""
    meta = corpus.meta
    S = meta["source_tokens"]
    if pseudo is None:
        pseudo = np.asarray(corpus.train).reshape(-1, meta["row"])
    val = np.asarray(corpus.val).reshape(-1, meta["row"])[:, S:].flatten()
    texts = types.SimpleNamespace(val=val, meta=meta)
    fit_ngram(pseudo[:, S:], texts, cfg.ngram_n, cfg.smoothing, cfg.out_dir)


def make_drafter(cfg, meta, T, device, note):
    """-> the model to train, new, resumed or from a checkpoint, and what to resume from or None."""
    if not reads_source(cfg.drafter):
        return distill.make_drafter(cfg, meta, T, device, note)
    drafter, checkpoint = load_model(cfg.drafter, device, cfg.attention)
    if not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(f"The drafter {cfg.drafter} has another vocabulary than the text.")
    saved = checkpoint_to_resume(cfg)
    if saved:
        load_weights(drafter, saved["model"])
    n_params = sum(p.numel() for p in drafter.parameters())
    print_once(f"{n_params / 1e6:.2f} M parameters on {note}")
    return drafter, saved


def load_teacher(cfg, meta):
    """-> the target, as a teacher, or None where nobody asks it."""
    if cfg.learn == "text" and (cfg.kd_data != "teacher" or cfg.drafter == "ngram"):
        return None
    frozen = frozen_dtype(cfg.device, cfg.dtype)
    model, checkpoint = load_model(cfg.target, attention=cfg.attention, dtype=frozen)
    if not data.same_vocabulary(meta, checkpoint["meta"]):
        raise UserError(f"The target {cfg.target} has another vocabulary than {cfg.dataset}.")
    cfg.teacher_step = checkpoint["step"]  # so that a resumed run notices another teacher
    cfg.teacher_loss = checkpoint["val_loss"]
    return model.requires_grad_(False)


def open_pseudo_data(target, corpus, cfg, device):
    """-> what write_pseudo_data returns, written by the first process."""
    names = ("target", "teacher_step", "teacher_loss", "dataset", "seed")
    origin = {name: getattr(cfg, name) for name in names}
    on_first_process(lambda: check_origin(os.path.join(cfg.out_dir, "pseudo.json"), origin))
    on_first_process(lambda: write_pseudo_data(target, corpus, cfg, device))
    return write_pseudo_data(target, corpus, cfg, device)  # it is there: this only opens it


def check_kd(cfg):
    """Raises UserError for knobs that do not go together, before any work."""
    choose("learn", cfg.learn, ("teacher", "text"))
    choose("kd_data", cfg.kd_data, ("dataset", "teacher", "student"))
    choose("divergence", cfg.divergence, ("kl_bwd", "kl_fwd", "tvd", "jsd", "nla"))
    choose("smoothing", cfg.smoothing, ("kneser_ney", "laplace"))
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    check_at_least(cfg, ngram_n=1, pseudo_tokens=1)
    if cfg.learn == "text" and cfg.kd_data == "student":
        raise UserError(
            "learn is 'text' and kd_data 'student': a drafter learns nothing from the text that it "
            "wrote itself. Use --kd_data=dataset."
        )
    check_loop(cfg)


def kd(cfg):
    # what else the training loop asks for, and what is no choice here
    cfg.method = "t5"  # a run of distill.py cannot be resumed as one of these
    cfg.sample_interval = 0  # fit's samples read no source
    cfg.fsdp = False  # it shards our own blocks only
    check_kd(cfg)
    if reads_source(cfg.drafter):
        cfg.compile = "off"  # which compiles a trunk that reads no source
    corpus, S, T = load_rows(cfg.dataset)
    eot = corpus.meta["eot"]
    target = load_teacher(cfg, corpus.meta)
    check_folder(cfg, "ckpt.pt", free=("max_iters",))
    device, note = join_processes(cfg)
    target = target and target.to(device)
    on_first_process(lambda: distill.start_folder(cfg, note))
    if cfg.drafter != "ngram":  # its mistakes show before the target writes for hours
        drafter, saved = make_drafter(cfg, corpus.meta, T, device, note)
    pseudo = None
    if target and (cfg.kd_data == "teacher" or cfg.drafter == "ngram"):
        pseudo = open_pseudo_data(target, corpus, cfg, device)
    if cfg.drafter == "ngram":
        return on_first_process(lambda: count_ngrams(pseudo, corpus, cfg))

    autocast, _ = pick_for_sampling(True, cfg.device, cfg.dtype)

    def get_batch(generator):
        """-> (B, S + T): sources of the dataset, with its texts or what a model writes."""
        if cfg.kd_data == "dataset":
            return data.batch(corpus.train, cfg.batch_size, S + T, generator)
        if cfg.kd_data == "teacher":
            rows = torch.randint(len(pseudo), (cfg.batch_size,), generator=generator)
            return torch.from_numpy(pseudo[rows.numpy()].astype(np.int64))
        starts = data.batch(corpus.train, cfg.batch_size, S + 1, generator).to(device)
        with torch.compiler.set_stance("force_eager"), autocast:  # its shapes vary here
            rows = with_text_of(drafter.eval(), starts, T - 1, generator, eot)
        drafter.train()
        return rows

    loss = functools.partial(
        t5_loss,
        target=target if cfg.learn == "teacher" else None,
        n_source=S,
        eot=eot,
        divergence=cfg.divergence,
    )
    validate = validator(loss, corpus, S + T, cfg, device)
    on_eval, save = hooks(drafter, validate, cfg, corpus.meta)
    fit(drafter, loss, get_batch, cfg, on_eval, save, saved)


# --------------------------------------------------------------------------------------------------
# sample: one source at a time


def encode_source(meta, text, device):
    """A text -> (S,) int64 its source, (1,) int64 the decoder's start token."""
    if not text:
        raise UserError("An encoder needs a text to read: --prompt='summarize: ...'")
    ids = torch.tensor(data.encode_prompt(meta, text), device=device)
    return ids[:-1], ids[-1:]


def until_eos(tokens, eos):
    """(n,) int64 -> up to and including the first eos."""
    found = (tokens == eos).nonzero()  # (k, 1)
    return tokens[: found[0, 0] + 1] if len(found) else tokens


def written_text(x, decode, eot):
    """(T,) int64, a start token and what follows -> str, up to the first end-of-text."""
    ids = until_eos(x[1:], eot).tolist()
    return decode(ids)


def check_length(cfg, target):
    """Raises UserError if the decoder cannot write that many tokens after its start token."""
    size = target.config.block_size
    if not 1 <= cfg.length < size:
        raise UserError(f"length is {cfg.length}; from 1 to {size - 1} tokens can be written.")


def write_text(target, drafter, pair, cfg, gamma, generator, rounds=None):
    """
    A source and a start token -> (1 + n,) int64 on the CPU, seconds. drafter: None, or one that
    condition_drafter takes. rounds: a metrics.Rounds, counts what is accepted.
    """
    source, start = pair
    eot = target.inner.config.eos_token_id
    options = {"generator": generator, "eos": eot, **settings_of(cfg)}
    began = time.perf_counter()
    decoder = target.encode(source[None])
    if drafter is None:
        x = generate(decoder, start[None], cfg.length, **options)[0]
        x = torch.cat([start, until_eos(x[1:], eot)])  # more of them only fill the row
    else:
        conditioned = condition_drafter(drafter, source)
        rounds.start(1)
        options |= {"gamma": gamma, "watch": rounds}
        x = speculate(decoder, conditioned, start, cfg.length, **options)
    x = x.cpu()  # waits for the device
    return x, time.perf_counter() - began


def fastest_gamma(target, drafter, pair, cfg):
    """-> cfg.gamma, or if it is 0 the fastest by what a short trial on one source tells."""
    if cfg.gamma:
        return cfg.gamma
    source, start = pair
    decoder = target.encode(source[None])
    conditioned = condition_drafter(drafter, source)
    generator = seeded(cfg.seed, "trial", device=source.device)
    return choose_gamma(decoder, conditioned, start, cfg.length, settings_of(cfg), generator)


@torch.no_grad()
def sample(cfg):
    check_sampling_knobs(cfg)
    device, _, _ = pick_device(cfg.device, cfg.dtype)
    autocast, note = pick_for_sampling(True, cfg.device, cfg.dtype)
    frozen = frozen_dtype(cfg.device, cfg.dtype)
    target, checkpoint = load_model(cfg.target, device, cfg.attention, frozen)
    check_length(cfg, target)
    meta = checkpoint["meta"]
    pair = encode_source(meta, data.read_text(cfg.prompt), device)
    decode = data.encoder(meta)[1]
    drafter = load_any_drafter(cfg.draft, target, meta, cfg) if cfg.draft else None
    with autocast:
        gamma = fastest_gamma(target, drafter, pair, cfg) if drafter else 0
        for i in range(cfg.num_samples):
            rounds = Rounds(gamma)
            generator = seeded(cfg.seed, i, device=device)
            x, seconds = write_text(target, drafter, pair, cfg, gamma, generator, rounds)
            print(f"--- sample {i + 1}\n{written_text(x, decode, meta['eot'])}\n---")
            said = f"{len(x) - 1} tokens in {seconds:.2f} s on {note}"
            if drafter:
                said += f"; gamma {gamma}, {tokens_per_forward(rounds):.2f} per forward pass"
            print(said)


# --------------------------------------------------------------------------------------------------
# eval


def rouge_2(references, texts):
    """[str], [str] -> the mean F1 of ROUGE-2, half the width of its 95 % interval."""
    score, error = rouge_2_f1(references, texts)
    return {"rouge2": score, "rouge2_error": error}


def alpha_and_gamma(target, drafter, pairs, baseline, cfg):
    """
    baseline: what write_text returned without a drafter for each source -> a dict as that of
    metrics.drafter_row: alpha on these texts, the costs on the first source, the fastest gamma.
    """
    settings = settings_of(cfg)
    by_text = []
    for (source, _), (x, _) in zip(pairs, baseline, strict=True):
        decoder = target.encode(source[None])
        conditioned = condition_drafter(drafter, source)
        text = x[None].to(source.device)
        by_text.append(overlap(decoder, conditioned, text, 1, settings, batch_size=1).cpu())
    alpha, error = mean_and_error(torch.cat(by_text))

    source, start = pairs[0]
    decoder = target.encode(source[None])
    conditioned = condition_drafter(drafter, source)
    generator = seeded(cfg.seed, "costs", device=source.device)
    # it has no end: the costs are of all of its length
    x, rounds = trial(decoder, conditioned, start, cfg.length, settings, generator)
    costs = measure_costs(decoder, conditioned, x, settings, generator)
    propose_rate = rounds.n_rounds_with_drafts / rounds.n_forwards
    known_alpha = alpha or 0.0  # None: it never proposed
    gamma = cfg.gamma or best_gamma(known_alpha, costs, propose_rate)[0]
    c, verify = costs[gamma]
    predicted = predicted_speedup(known_alpha, c, gamma, verify, propose_rate)
    row = {"alpha": alpha, "alpha_error": error, "propose_rate": propose_rate, "gamma": gamma}
    return row | {"c": c, "verify": verify, "predicted": predicted}


def drafter_row(target, drafter, pairs, baseline, cfg):
    """-> the texts (1 + n,) that the target writes with this drafter, and its row of the table."""
    row = alpha_and_gamma(target, drafter, pairs, baseline, cfg)
    rounds = Rounds(row["gamma"])
    texts = []
    speeds = []
    for i, (pair, (plain, plain_seconds)) in enumerate(zip(pairs, baseline, strict=True)):
        generator = seeded(cfg.seed, i, device=pair[0].device)
        x, seconds = write_text(target, drafter, pair, cfg, row["gamma"], generator, rounds)
        texts.append(x)
        speeds.append((len(x) - 1) / seconds / ((len(plain) - 1) / plain_seconds))
    row["alpha_counted"] = acceptance(rounds)
    row["tokens_per_forward"] = tokens_per_forward(rounds)
    row["speedup"], row["speedup_error"] = mean_and_error(torch.tensor(speeds))
    return texts, row


def check_eval(cfg):
    """Raises UserError before any work."""
    check_sampling_knobs(cfg)
    if not cfg.draft:
        raise UserError("Name drafters: --draft=CKPT,out/ngram/ngram.txt,lookup")
    if cfg.num_samples < 7:
        raise UserError(f"num_samples is {cfg.num_samples}; the intervals need at least 7.")
    if cfg.length <= max(GAMMAS):
        raise UserError(f"length is {cfg.length}; costs are measured on {max(GAMMAS) + 1} or more.")
    if cfg.gamma:
        choose("gamma", cfg.gamma, GAMMAS)
    check_package()


@torch.no_grad()
def evaluate(cfg):
    """-> what eval.json holds: a row for the target alone, and one for it with each drafter."""
    check_eval(cfg)
    device, _, note = pick_device(cfg.device, "float32")  # what is reported is in float32
    target, checkpoint = load_model(cfg.target, device, cfg.attention)
    check_length(cfg, target)
    meta = checkpoint["meta"]
    decode = data.encoder(meta)[1]
    prompts = read_prompts(cfg.prompts, cfg.num_samples)
    pairs = [encode_source(meta, prompt, device) for prompt, _ in prompts]
    references = [reference for _, reference in prompts]
    paths = paths_of(cfg.draft)
    drafters = [load_any_drafter(path, target, meta, cfg) for path in paths]

    baseline = []
    write_text(target, None, pairs[0], cfg, 0, None)  # warms up
    for i, pair in enumerate(tqdm(pairs, desc="the target alone", leave=False)):
        generator = seeded(cfg.seed, i, device=device)
        baseline.append(write_text(target, None, pair, cfg, 0, generator))
    texts = [written_text(x, decode, meta["eot"]) for x, _ in baseline]
    rows = [{"drafter": "the target alone", **rouge_2(references, texts)}]
    bar = tqdm(zip(paths, drafters, strict=True), desc="drafters", total=len(paths), leave=False)
    for path, drafter in bar:
        written, row = drafter_row(target, drafter, pairs, baseline, cfg)
        texts = [written_text(x, decode, meta["eot"]) for x in written]
        rows.append({"drafter": path, **row, **rouge_2(references, texts)})
    return {"target": cfg.target, "hardware": note, "seed": cfg.seed, "rows": rows}


def read_prompts(path, limit):
    """-> [(prompt, reference), ...], at least 7."""
    pairs = data.read_prompts(path)[:limit]
    if len(pairs) < 7:
        raise UserError(f"{path} holds {len(pairs)} prompts; the intervals need at least 7.")
    return pairs


TITLES = {
    "drafter": "drafter",
    "alpha": "alpha",
    "alpha_error": "+-",
    "alpha_counted": "counted",
    "tokens_per_forward": "tokens/forward",
    "gamma": "gamma",
    "c": "c",
    "verify": "verify",
    "predicted": "predicted",
    "speedup": "measured",
    "speedup_error": "+-",
    "rouge2": "ROUGE-2",
    "rouge2_error": "+-",
}


def table_of(rows):
    """-> the rows of evaluate as text. The columns are those of eval.py --what=acceptance."""
    return "\n".join(
        table(list(TITLES.values()), [[row.get(key) for key in TITLES] for row in rows])
    )


def main(cfg):
    choose("task", cfg.task, ("kd", "sample", "eval"))
    if cfg.task == "sample":
        return sample(cfg)
    if cfg.task == "eval":
        report = evaluate(cfg)
        text = table_of(report["rows"])
        print(text)
        data.write_json(os.path.join(cfg.out, "eval.json"), report)
        data.atomic_write(os.path.join(cfg.out, "eval.txt"), f"{text}\n".encode())
        return None
    try:
        kd(cfg)
    finally:
        release(cfg.out_dir)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
