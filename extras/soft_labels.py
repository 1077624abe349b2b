"""
Soft labels: a student learns a text from the most probable tokens of a teacher at each position,
all that an API shows. The labels lie on the disk: made by a local GPT, or read from a .jsonl.

$ python -m extras.soft_labels config/soft_shakespeare_char.py --topk=8          (2 to 6 minutes)
$ python -m extras.soft_labels config/soft_shakespeare_char.py --soft_data=texts.jsonl \
      --dataset=shakespeare_char --out_dir=out/soft_api
$ torchrun --standalone --nproc_per_node=2 -m extras.soft_labels config/soft_shakespeare_char.py \
      --vocab_parallel=True --gradient_accumulation_steps=2

Top-k logits as in metaseq (Zhang et al. 2022, arXiv 2205.01068). The loss is soft_cross_entropy;
vocab_parallel.py beside this file has it for a vocabulary that is split over processes.
"""

import functools
import hashlib
import json
import math
import os
import types

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data
from configurator import UserError, choose, configure, print_once, save_config
from drafters import load_model
from extras.vocab_parallel import sliced_logits, sliced_soft_cross_entropy
from loop import fit, validator
from model import ar_loss

# --------------------------------------------------------------------------------------------------
# KNOBS
# --------------------------------------------------------------------------------------------------
# the loss


def soft_cross_entropy(logits, ids, logp, missing="none"):
    """
    (N, V), (N, K) int64, (N, K) log-probabilities of a teacher -> (N) nats: -sum_k w_k log p(id_k),
    w = exp(logp). Ids may repeat; entries with logp -inf weigh nothing.

    Its gradient by the logits is W softmax(logits) - scatter(w) with W = sum w: with W < 1,
    forgetting W pushes named tokens the wrong way. missing: what to do about 1 - W.
    """
    lse = logits.logsumexp(-1)  # (N)
    w = logp.exp()  # (N, K)
    if missing == "renorm":
        w = w / w.sum(-1, keepdim=True)
    loss = (w * (lse[:, None] - logits.gather(1, ids))).sum(-1)
    if missing == "tail":  # all tokens that are not named, as one more token
        unnamed = logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)  # (N)
        gone = 1 - w.sum(-1)
        gone = gone.masked_fill(gone < 1e-6, 0)  # below is rounding
        loss = loss + gone * (lse - unnamed)
    return loss


def soft_loss(student, batch, generator, soft, missing="none", ce_weight=0.0, parallel=False):
    """
    (B, L + 1) int64: tokens, and the number of their row in `soft` -> nats, the mean over labelled
    positions. generator is not used: there is no noise.

    ce_weight: of the cross-entropy with the text itself. parallel: every process has this batch, and
    computes the logits of its own slice of the vocabulary.
    """
    x = batch[:, :-1]  # (B, L)
    rows = batch[:, -1].cpu().numpy()  # (B)
    # the label of position i is of token i, after those before it: position 0 has none
    ids = torch.from_numpy(soft.ids[rows, 1:]).to(x.device).long()  # (B, L - 1, K)
    logp = torch.from_numpy(soft.logp[rows, 1:]).to(x.device)  # (B, L - 1, K)
    labelled = logp.amax(-1) > -math.inf  # (B, L - 1), N of them
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

SOFT = {"tokens": np.int32, "topk_ids": np.int32, "topk_logp": np.float32}


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
        for name in SOFT:
            self.files[name] = open(os.path.join(folder, f"{name}.bin.tmp"), "ab")
        sizes = {name: file.tell() for name, file in self.files.items()}
        self.keep(min(sizes[name] // self.bytes_of_row[name] for name in SOFT))

    def keep(self, n):
        """Drops the rows after the first n."""
        self.n = n
        for name, file in self.files.items():
            file.truncate(n * self.bytes_of_row[name])

    def add(self, tokens, ids, logp):
        """(n, L), (n, L, K), (n, L, K)."""
        for name, array in zip(SOFT, (tokens, ids, logp), strict=True):
            self.files[name].write(np.ascontiguousarray(array, dtype=SOFT[name]).tobytes())
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
        for name, kind in SOFT.items():
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

JSONL = (
    '{"tokens": ["a", ...], "top_logprobs": [{"a": -0.1, ...}, ...]} or '
    '{"content": [{"token": "a", "top_logprobs": [{"token": "a", "logprob": -0.1}, ...]}, ...]}'
)


def parse_line(line):
    """
    A line of JSON, of one of the two shapes in JSONL or with one as its "logprobs" -> tokens [str],
    candidates [{str: float}] at each. Raises what Python raises if it is something else.
    """
    text = json.loads(line)
    text = text.get("logprobs") or text
    if "content" in text:
        tokens = [position["token"] for position in text["content"]]
        candidates = []
        for position in text["content"]:
            candidates.append({top["token"]: top["logprob"] for top in position["top_logprobs"]})
    else:
        tokens = text["tokens"]
        candidates = [top or {} for top in text["top_logprobs"]]
    if len(tokens) != len(candidates):
        raise ValueError(f"{len(tokens)} tokens, {len(candidates)} top_logprobs")
    for top in candidates:
        if not all(isinstance(value, int | float) for value in top.values()):
            raise ValueError("a logprob is no number")
    return tokens, candidates


def rows_of(tokens, candidates, id_of, L, K):
    """
    [str], [{str: float}], {str: id} -> (n, L), (n, L, K), (n, L, K) for SoftWriter.add, and how many
    candidates are not in the vocabulary: they are left out. Raises KeyError for such a token.
    """
    n = math.ceil(len(tokens) / L)
    x = np.zeros((n, L), dtype=np.int64)
    ids = np.zeros((n, L, K), dtype=np.int64)
    logp = np.full((n, L, K), -np.inf)
    n_unknown = 0
    for i, (token, top) in enumerate(zip(tokens, candidates, strict=True)):
        row = i // L
        column = i % L
        x[row, column] = id_of[token]  # what the teacher wrote, not what it found likeliest
        known = [(value, id_of[text]) for text, value in top.items() if text in id_of]
        n_unknown += len(top) - len(known)
        known = sorted(known, key=lambda pair: -pair[0])[:K]
        if column == 0 or not known:  # the first token of a row has no context in it
            continue
        ids[row, column] = known[0][1]
        for k, (value, number) in enumerate(known):
            ids[row, column, k] = number
            logp[row, column, k] = value
    return x, ids, logp, n_unknown


def soft_from_jsonl(path, folder, meta, L, K):
    """
    Texts as API teachers give them, one JSON object a line (JSONL), -> folder, in rows of L tokens.

    Candidates outside the vocabulary are left out (their probability goes missing) and counted; an
    emitted token outside it raises UserError, as does a line that is something else.
    """
    decode = data.encoder(meta)[1]
    id_of = {decode([i]): i for i in range(meta["vocab_size"])}
    # half characters of GPT-2 all have this text: it names none of them
    id_of = {text: i for text, i in id_of.items() if "\ufffd" not in text}
    writer = SoftWriter(folder, L, K, meta)
    writer.keep(0)  # nothing of an earlier attempt
    n_unknown = 0
    n_labels = 0
    with open(path, "rb") as f:
        for line_number, line in enumerate(f, 1):
            try:
                *rows, unknown = rows_of(*parse_line(line), id_of, L, K)
            except KeyError as error:
                said = f"{path}, line {line_number}: {error} is missing, or no token of the vocabulary."
                raise UserError(f"{said} A line is {JSONL}.") from None
            except (AttributeError, TypeError, ValueError) as error:
                said = f"{path}, line {line_number}, is not a text with top_logprobs ({error})."
                raise UserError(said) from None
            writer.add(*rows)
            n_unknown += unknown
            n_labels += int(np.isfinite(rows[2][:, :, 0]).sum())
    if not n_labels:
        why = "no position after a text's first has top_logprobs of the vocabulary"
        raise UserError(f"{path} holds no label: {why}.")
    writer.finish(source=path, unknown_candidates=n_unknown)
