"""
Soft labels: a student learns a text from the most probable tokens of a teacher at each position,
all that an API shows. The labels lie on the disk: made by a local GPT, or read from a .jsonl.

$ python -m extras.soft_labels config/soft_shakespeare_char.py --topk=8          (a few minutes)
$ python -m extras.soft_labels config/soft_shakespeare_char.py --soft_data=texts.jsonl \
      --dataset=shakespeare_char --out_dir=out/soft_api
$ torchrun --standalone --nproc_per_node=2 -m extras.soft_labels config/soft_shakespeare_char.py \
      --vocab_parallel=True --gradient_accumulation_steps=2

Top-k logits as in metaseq (Zhang et al. 2022, arXiv 2205.01068). The loss is soft_cross_entropy;
vocab_parallel.py beside this file has it for a vocabulary that is split over processes.
"""

import collections
import functools
import hashlib
import math
import os
import types

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data
from configurator import UserError, check_at_least, choose, configure
from data.token_names import TokenNames
from distill import make_drafter, start_folder
from drafters import load_model
from extras.soft_texts import check_known, identified, known_runs, rows_of, texts_of
from extras.vocab_parallel import label_weights, sliced_logits, sliced_soft_cross_entropy
from loop import check_loop, fit, hooks, validator
from model import ar_loss
from plumbing.checks import check_text
from plumbing.hardware import dtype_of, frozen_dtype, pick_device
from plumbing.parallel import join_processes, leave_processes, on_first_process
from plumbing.runs import check_folder, check_origin, release

# --------------------------------------------------------------------------------------------------
teacher = "out/shakespeare_char_ar/ckpt.pt"  # a GPT, also gpt2 or hf:NAME
dataset = ""  # a name under data/, or a folder that a prepare.py wrote; '': the teacher's
out_dir = "out/soft"  # gets ckpt.pt, and the labels in soft/
init_from = "teacher"  # 'teacher' (a new run) | 'resume' (out_dir)
# the labels
n_tokens = 1_000_000  # of the dataset, that the teacher labels
topk = 16  # log-probabilities kept for each token
soft_data = ""  # instead of the teacher: a .jsonl of an API teacher, or a folder of labels
soft_length = 256  # tokens in a row, where a .jsonl is read
# the student
drafter = "lstm"  # 'lstm' | 'cnn' | 'gpt' | a checkpoint
n_layer = 1  # of a new drafter
n_head = 4
n_embd = 128
# the loss
missing = "none"  # 'none' | 'renorm' (scale the rest up) | 'tail' (on all other tokens together)
ce_weight = 0.0  # of the cross-entropy with the text itself
vocab_parallel = False  # under torchrun: split the head's vocabulary, not the batch
# optimizer: AdamW
max_iters = 10000  # optimizer steps
batch_size = 16  # sequences per forward pass, on each process
gradient_accumulation_steps = 8  # forward passes per step, over all processes
learning_rate = 6e-5
warmup_iters = 500  # steps, linear, up to learning_rate
min_lr = 1.0  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.0  # of matrices
beta2 = 0.999  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
dropout = 0.0  # of the model that is trained
ema = 0.9999  # decay of the averaged weights, which are validated and sampled; 0: off
# the run
eval_interval = 1000  # steps between validations, which save the checkpoint
eval_iters = 4  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
compile = "auto"  # 'auto' (on cuda) | 'on' | 'off': torch.compile
fsdp = False  # under torchrun: shard weights, gradients and optimizer (FSDP2); False: DDP
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------------------
# the loss


def soft_cross_entropy(logits, ids, logp, missing="none"):
    """
    (N, V), (N, K) int64, (N, K) log-probabilities of a teacher -> (N) nats: -sum_k w_k log p(id_k),
    w = exp(logp). Ids may repeat: each of them counts. An entry with logp -inf has weight 0, but
    its id is named; a row of nothing else costs 0, except for a tail.

    Its gradient by the logits is W softmax(logits) - scatter(w) with W = sum w: with W < 1,
    forgetting W pushes named tokens the wrong way. missing says what becomes of 1 - W: 'none',
    nothing; 'renorm', w / W stands for w; 'tail', all tokens that are not named together get it,
    (1 - W) * -log(sum of their p), and nothing is added where all are named.
    """
    lse = logits.logsumexp(-1)  # (N)
    w, missing_mass = label_weights(logp, missing)  # (N, K), (N)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":  # all tokens that are not named, as one more token
        unnamed = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)  # (N)
        loss = loss + missing_mass * (lse - unnamed)
    return loss


def soft_loss(student, batch, generator, labels, missing="none", ce_weight=0.0, parallel=False):
    """
    (B, L + 1) int64: tokens, and the number of their row in the labels -> nats, the mean over
    labelled positions. generator is not used: there is no noise.

    ce_weight: of the cross-entropy with the text itself. parallel: every process has this batch,
    and computes the logits of its own slice of the vocabulary.
    """
    x = batch[:, :-1]  # (B, L)
    rows = batch[:, -1].cpu().numpy()  # (B)
    # the label of position i is of token i, after those before it: position 0 has none
    ids = torch.from_numpy(labels.ids[rows, 1:]).to(x.device).long()  # (B, L - 1, K)
    logp = torch.from_numpy(labels.logp[rows, 1:]).to(x.device)  # (B, L - 1, K)
    labelled = logp.exp().sum(-1) > 0  # (B, L - 1), N of them: some probability is known
    y = x[:, 1:][labelled]  # (N): what the text says there
    ids = ids[labelled]  # (N, K)
    logp = logp[labelled]  # (N, K)

    h = student.hidden(x[:, :-1])[labelled]  # (N, C)
    if parallel:
        logits, first = sliced_logits(student, h)  # (N, V / world)
        cross_entropy = functools.partial(sliced_soft_cross_entropy, first=first)
    else:
        logits = student.head(h).float()  # (N, V)
        cross_entropy = soft_cross_entropy
    losses = cross_entropy(logits, ids, logp, missing=missing)  # (N)
    if ce_weight:
        # the text itself names one token, of probability 1
        certain = torch.zeros_like(logp[:, :1])  # (N, 1)
        losses = losses + ce_weight * cross_entropy(logits, y[:, None], certain)
    return losses.sum() / max(len(losses), 1)


# --------------------------------------------------------------------------------------------------
# labels on the disk

# NAME.bin -> the type of its numbers
LABEL_FILES = {"tokens": np.int32, "topk_ids": np.int32, "topk_logp": np.float32}


class SoftWriter:
    """
    Appends rows of L tokens and their K log-probabilities to folder; finish() makes them loadable.

    ids[r, i] and logp[r, i] say what the teacher expected at position i, having read tokens[r, :i].
    Where it said nothing (position 0, padding) every logp is -inf; where it named fewer than K, the
    first id is repeated with -inf. n: the rows so far, at first those of a writer that was killed.
    """

    def __init__(self, folder, L, K, meta):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.L = L
        self.K = K
        self.meta = meta
        self.bytes_of_row = {"tokens": 4 * L, "topk_ids": 4 * L * K, "topk_logp": 4 * L * K}
        self.files = {}
        for name in LABEL_FILES:
            self.files[name] = open(os.path.join(folder, f"{name}.bin.tmp"), "ab")
        sizes = {name: file.tell() for name, file in self.files.items()}
        self.keep(min(sizes[name] // self.bytes_of_row[name] for name in LABEL_FILES))

    def keep(self, n):
        """Drops the rows after the first n."""
        self.n = n
        for name, file in self.files.items():
            file.truncate(n * self.bytes_of_row[name])

    def add(self, tokens, ids, logp):
        """(n, L), (n, L, K), (n, L, K)."""
        for name, array in zip(LABEL_FILES, (tokens, ids, logp), strict=True):
            self.files[name].write(np.ascontiguousarray(array, dtype=LABEL_FILES[name]).tobytes())
            self.files[name].flush()
        self.n += len(tokens)

    def finish(self, **more):
        for name, file in self.files.items():
            file.close()
            os.replace(file.name, os.path.join(self.folder, f"{name}.bin"))
        meta = {**self.meta, "rows": self.n, "length": self.L, "topk": self.K, **more}
        data.write_json(os.path.join(self.folder, "meta.json"), meta)


def load_soft(folder):
    """
    -> .tokens (n, L), .ids (n, L, K), .logp (n, L, K), memory-mapped, and .meta. Raises UserError
    if something is missing.
    """
    arrays = {}
    try:
        meta = data.read_json(os.path.join(folder, "meta.json"))
        n = meta["rows"]
        L = meta["length"]
        K = meta["topk"]
        shapes = {"tokens": (n, L), "topk_ids": (n, L, K), "topk_logp": (n, L, K)}
        for name, kind in LABEL_FILES.items():
            array = np.memmap(os.path.join(folder, f"{name}.bin"), dtype=kind, mode="r")
            arrays[name] = array.reshape(shapes[name])
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = str(error)[:80]
        fix = "python -m extras.soft_labels writes them."
        raise UserError(f"{folder} holds no soft labels ({why}). {fix}") from None
    tokens, ids, logp = arrays.values()
    return types.SimpleNamespace(tokens=tokens, ids=ids, logp=logp, meta=meta)


@torch.no_grad()
def soft_from_teacher(teacher, x, folder, meta, K, batch_size=16):
    """
    (n, L) int64 -> folder: the K best log-probabilities at every position except the first. Goes on
    with what it has written if it was killed.
    """
    writer = SoftWriter(folder, x.size(1), K, meta)
    batches = x.split(batch_size)
    done = writer.n // batch_size
    writer.keep(done * batch_size)
    bar = tqdm(batches[done:], "soft labels", initial=done, total=len(batches), unit="batch")
    for rows in bar:
        h = teacher.hidden(rows[:, :-1].to(teacher.wte.weight.device))  # (B, L - 1, C)
        logp = torch.empty(*h.shape[:2], K)  # (B, L - 1, K)
        ids = torch.empty(*h.shape[:2], K, dtype=torch.int64)
        for i in range(len(h)):  # text by text: not all B x L x V logits at once
            best = teacher.head(h[i]).float().log_softmax(-1).topk(K)
            logp[i] = best.values
            ids[i] = best.indices
        # nobody has predicted the first token
        writer.add(rows, F.pad(ids, (0, 0, 1, 0)), F.pad(logp, (0, 0, 1, 0), value=-math.inf))
    writer.finish()


# --------------------------------------------------------------------------------------------------
# texts of an API teacher


def soft_from_jsonl(path, folder, meta, L, K):
    """
    Texts as API teachers give them, one JSON object a line (JSONL), -> folder, in rows of L tokens.

    Candidates that are not known (their probability goes missing) are left out, and so are tokens:
    after one, a new row begins. Both are counted. Raises UserError if most tokens are not known, or
    with the line that is something else.
    """
    names = TokenNames(meta)
    writer = SoftWriter(folder, L, K, meta)
    writer.keep(0)  # nothing of an earlier attempt
    counts = collections.Counter()
    first = ""
    for line_number, tokens, candidates in texts_of(path):
        positions, odd_tokens, odd_candidates = identified(tokens, candidates, names)
        for run in known_runs(positions):
            rows = rows_of(run, L, K)
            writer.add(*rows)
            counts["labels"] += int(np.isfinite(rows[2][:, :, 0]).sum())
        counts["tokens"] += len(tokens)
        counts["unknown_tokens"] += len(odd_tokens)
        counts["unknown_candidates"] += len(odd_candidates)
        if not first and (odd_tokens or odd_candidates):
            name = (odd_tokens or odd_candidates)[0].decode(errors="replace")
            first = f"line {line_number}, {name!r}"
    check_known(path, counts, first)
    writer.finish(source=path, **counts)


# --------------------------------------------------------------------------------------------------
# the run


def check_knobs(cfg):
    """Raises UserError for knobs that do not go together, before any work."""
    choose("init_from", cfg.init_from, ("teacher", "resume"))
    choose("missing", cfg.missing, ("none", "renorm", "tail"))
    check_at_least(cfg, topk=1, n_tokens=1, soft_length=2, max_iters=1)
    if cfg.drafter == "ngram":
        raise UserError("An n-gram counts texts: it learns with distill.py --drafter=ngram.")
    if cfg.vocab_parallel and "WORLD_SIZE" not in os.environ:
        raise UserError("vocab_parallel splits over processes: torchrun --nproc_per_node=2 ...")
    if cfg.vocab_parallel and cfg.dropout:
        raise UserError(
            f"dropout is {cfg.dropout}, another on every process; vocab_parallel needs the same "
            "states on all. Use --dropout=0."
        )
    if cfg.vocab_parallel and cfg.fsdp:
        raise UserError("fsdp does not go with --vocab_parallel=True. Use --fsdp=False.")
    if cfg.soft_data and not os.path.exists(cfg.soft_data):
        raise UserError(f"soft_data is {cfg.soft_data!r}, but there is no such file or folder.")
    if cfg.soft_data and not cfg.dataset:
        raise UserError("--soft_data needs --dataset: its vocabulary, and its text to validate on.")


def check_head(student, cfg):
    """Raises UserError if the head is to be split and cannot be."""
    if cfg.vocab_parallel and not hasattr(student, "head_weight"):
        raise UserError(
            f"vocab_parallel splits the head of our own models, not that of {cfg.drafter}, which "
            "is one of transformers. Use --vocab_parallel=False."
        )


def load_teacher_and_corpus(cfg):
    """
    -> teacher or None, corpus, tokens in a row of labels. Raises UserError if they or out_dir do
    not fit, before anything is written.
    """
    teacher = None
    if cfg.soft_data:  # the labels need no teacher
        is_file = os.path.isfile(cfg.soft_data)
        L = cfg.soft_length if is_file else load_soft(cfg.soft_data).meta["length"]
        corpus = data.load(cfg.dataset)
        meta = corpus.meta
    else:
        frozen = frozen_dtype(cfg.device, cfg.dtype)
        teacher, checkpoint = load_model(cfg.teacher, attention=cfg.attention, dtype=frozen)
        if not teacher.config.causal:
            said = f"The teacher {cfg.teacher} is a masked diffusion model"
            raise UserError(f"{said}: soft labels are of the next token. Give a GPT.")
        cfg.dataset = cfg.dataset or checkpoint["config"]["dataset"]
        cfg.teacher_step = checkpoint["step"]  # so that a resumed run notices another teacher
        cfg.teacher_loss = checkpoint["val_loss"]
        L = teacher.config.block_size
        corpus = data.load(cfg.dataset)
        meta = checkpoint["meta"]
    check_text(cfg, corpus, L, meta)
    V = corpus.meta["vocab_size"]
    if cfg.topk > V:
        raise UserError(f"topk is {cfg.topk}, but the vocabulary has {V} tokens.")
    check_folder(cfg, "ckpt.pt", free=("max_iters",))
    return teacher, corpus, L


def origin_of(cfg, L):
    """-> a dict of all that the labels depend on."""
    origin = {"length": L, "dataset": cfg.dataset, "topk": cfg.topk, "soft_data": cfg.soft_data}
    if cfg.soft_data:
        digest = hashlib.sha256()
        with open(cfg.soft_data, "rb") as f:
            for line in f:
                digest.update(line)
        return {**origin, "soft_data that holds": digest.hexdigest()[:16]}
    names = ("teacher", "teacher_step", "teacher_loss", "n_tokens")
    _, autocast, _ = pick_device(cfg.device, cfg.dtype)
    origin["computed in"] = str(dtype_of(autocast))
    return origin | {name: getattr(cfg, name) for name in names}


def label(teacher, corpus, folder, L, device, cfg):
    """-> folder: the labels that cfg asks for, unless they are there. Raises if others are."""
    path = os.path.join(cfg.out_dir, "soft.json")
    finished = os.path.exists(os.path.join(folder, "meta.json"))
    if cfg.soft_data and not finished and os.path.exists(path):
        os.remove(path)  # the last try failed, and the file may be another now
    check_origin(path, origin_of(cfg, L))
    if finished:
        return
    if cfg.soft_data:
        soft_from_jsonl(cfg.soft_data, folder, corpus.meta, L, cfg.topk)
    else:
        x = data.blocks(corpus.train, L, max(1, cfg.n_tokens // L))
        _, autocast, _ = pick_device(cfg.device, cfg.dtype)
        with autocast:
            soft_from_teacher(teacher.to(device), x, folder, corpus.meta, cfg.topk)


def labels_of(teacher, corpus, L, device, cfg):
    """-> the labels, which the first process makes if they are not there."""
    folder = os.path.join(cfg.out_dir, "soft")
    if os.path.isdir(cfg.soft_data):
        folder = cfg.soft_data
    else:
        on_first_process(lambda: label(teacher, corpus, folder, L, device, cfg))
    labels = load_soft(folder)
    if not data.same_vocabulary(corpus.meta, labels.meta):
        raise UserError(
            f"The soft labels in {folder} have another vocabulary than the dataset {cfg.dataset}."
        )
    return labels


def train_student(cfg):
    teacher, corpus, L = load_teacher_and_corpus(cfg)
    device, note = join_processes(cfg)
    student, saved = make_drafter(cfg, corpus.meta, L, device, note)  # its mistakes show first
    check_head(student, cfg)
    on_first_process(lambda: start_folder(cfg, note))
    labels = labels_of(teacher, corpus, L, device, cfg)
    del teacher  # its memory is free for the student

    def get_batch(generator):
        """-> (B, L + 1): rows of labelled text, and their numbers."""
        rows = torch.randint(len(labels.tokens), (cfg.batch_size,), generator=generator)
        tokens = torch.from_numpy(labels.tokens[rows.numpy()]).long()
        batch = torch.cat([tokens, rows[:, None]], dim=1).to(device)
        if cfg.vocab_parallel:
            dist.broadcast(batch, 0)  # all have the first one's
        return batch

    loss = functools.partial(
        soft_loss,
        labels=labels,
        missing=cfg.missing,
        ce_weight=cfg.ce_weight,
        parallel=cfg.vocab_parallel,
    )
    validate = validator(ar_loss, corpus, L + 1, cfg, device)
    on_eval, save = hooks(student, validate, cfg, corpus.meta)
    fit(student, loss, get_batch, cfg, on_eval, save, saved)


def main(cfg):
    cfg.method = "soft"  # a run of distill.py cannot be resumed as one of these
    check_knobs(cfg)
    check_loop(cfg)
    try:
        train_student(cfg)
    finally:
        release(cfg.out_dir)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
