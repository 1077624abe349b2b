"""
Soft labels on the disk: texts with the most probable tokens of a teacher at every place.
"""

import json
import math
import os
import types

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configurator import UserError
from data import blocks, encoder, read_json, write_json
from plumbing.huggingface import source_of, written
from plumbing.runs import refuse_other_origin

SOFT = {"tokens": np.int32, "topk_ids": np.int32, "topk_logp": np.float32}


class SoftWriter:
    """Appends rows of L tokens and their top K log-probabilities to folder; finish() makes them loadable.

    ids[r, i] and logp[r, i] tell what the teacher expected at place i, having read tokens[r, :i]. Where it expected
    nothing (place 0, padding) every logp is -inf; where fewer than K are known, the first id again with -inf.
    n: how many rows there are, at the beginning those of a writer that was killed.
    """

    def __init__(self, folder, L, K, meta):
        os.makedirs(folder, exist_ok=True)
        self.folder, self.L, self.K, self.meta = folder, L, K, meta
        self.files = {name: open(os.path.join(folder, f"{name}.bin.tmp"), "ab") for name in SOFT}
        self.bytes = {name: 4 * L * (1 if name == "tokens" else K) for name in SOFT}  # of a row
        self.keep(min(file.tell() // self.bytes[name] for name, file in self.files.items()))

    def keep(self, n):
        """Drops the rows after the first n."""
        self.n = n
        for name, file in self.files.items():
            file.truncate(n * self.bytes[name])

    def add(self, tokens, ids, logp):
        """(n, L), (n, L, K), (n, L, K)."""
        for (name, kind), array in zip(SOFT.items(), (tokens, ids, logp), strict=True):
            self.files[name].write(np.ascontiguousarray(array, dtype=kind).tobytes())
            self.files[name].flush()
        self.n += len(tokens)

    def finish(self, **more):
        for name, file in self.files.items():
            file.close()
            os.replace(file.name, os.path.join(self.folder, f"{name}.bin"))
        meta = {**self.meta, "rows": self.n, "length": self.L, "topk": self.K, **more}
        write_json(os.path.join(self.folder, "meta.json"), meta)


@torch.no_grad()
def soft_from_teacher(teacher, x, folder, meta, K, batch_size=16):
    """(n, L) int64 -> folder: the K best log-probabilities at every place but the first; goes on after a kill.

    Of a teacher with an encoder, the rows begin after the source: a student sees what it writes.
    """
    first = source_of(teacher)
    writer, batches = SoftWriter(folder, x.size(1) - first, K, meta), x.split(batch_size)
    done = writer.n // batch_size
    writer.keep(done * batch_size)
    for rows in tqdm(
        batches[done:], desc="soft labels", unit="batch", initial=done, total=len(batches)
    ):
        h, unsaid = (
            teacher.hidden(rows[:, :-1].to(teacher.wte.weight.device)),
            ~written(teacher, rows[:, 1:]),
        )
        # text by text: no n x L x V logits at once
        best = [teacher.head(h_i[first:]).float().log_softmax(-1).topk(K) for h_i in h]
        logp, ids = (
            torch.stack(part).cpu() for part in zip(*best, strict=True)
        )  # (n, L - 1, K), L without the source
        logp.masked_fill_(unsaid[:, first:, None], -math.inf)
        writer.add(
            rows[:, first:], F.pad(ids, (0, 0, 1, 0)), F.pad(logp, (0, 0, 1, 0), value=-math.inf)
        )
    writer.finish()


def label(teacher, corpus, folder, T, cfg):
    """-> folder: the labels that cfg asks for, unless they are there; refuses those of other knobs."""
    origin, finished = (
        os.path.join(cfg.out_dir, "soft.json"),
        os.path.exists(os.path.join(folder, "meta.json")),
    )
    if (
        cfg.soft_data and not finished and os.path.exists(origin)
    ):  # it failed, and the file may be another now
        os.remove(origin)
    refuse_other_origin(origin, cfg, T)
    if finished:
        return
    if cfg.soft_data:
        soft_from_jsonl(cfg.soft_data, folder, corpus.meta, T, cfg.topk)
    else:
        x = blocks(corpus.train, T, max(1, cfg.pseudo_tokens // T))
        soft_from_teacher(teacher, x, folder, corpus.meta, cfg.topk)


def load_soft(folder):
    """-> .tokens (n, L), .ids (n, L, K), .logp (n, L, K), memory-mapped, and .meta. Raises UserError if incomplete."""
    try:
        meta = read_json(os.path.join(folder, "meta.json"))
        n, L, K = meta["rows"], meta["length"], meta["topk"]
        parts = [
            np.memmap(os.path.join(folder, f"{name}.bin"), dtype=kind, mode="r")
            for name, kind in SOFT.items()
        ]
        tokens, ids, logp = (
            a.reshape(n, L, *more) for a, more in zip(parts, ((), (K,), (K,)), strict=True)
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = str(error)[:80]
        raise UserError(
            f"{folder} holds no soft labels ({why}). distill.py --method=soft writes them."
        ) from None
    return types.SimpleNamespace(tokens=tokens, ids=ids, logp=logp, meta=meta)


def soft_from_jsonl(path, folder, meta, L, K):
    """Texts as API teachers give them, one JSON object a line -> folder, in rows of L tokens. An object is

    {"content": [{"token": "a", "top_logprobs": [{"token": "a", "logprob": -0.1}, ...]}, ...]} or
    {"tokens": ["a", ...], "top_logprobs": [{"a": -0.1, ...}, ...]}, or has one of them as its "logprobs".
    The context is the emitted token, not the likeliest. Candidates outside the vocabulary are left out (their mass goes
    missing) and counted; an emitted one raises UserError.
    """
    decode, V = encoder(meta)[1], meta["vocab_size"]
    texts = [decode([i]) for i in range(V)]
    number = {
        text: i for i, text in enumerate(texts) if "\ufffd" not in text
    }  # half characters of GPT-2: not one text
    writer, unknown, labels = SoftWriter(folder, L, K, meta), 0, 0
    writer.keep(0)  # nothing of an earlier attempt
    with open(path, "rb") as f:
        for line_number, line in enumerate(f, 1):
            try:
                text = json.loads(line)
                text = text.get("logprobs") or text
                if "content" in text:
                    tokens = [place["token"] for place in text["content"]]
                    tops = [
                        {t["token"]: t["logprob"] for t in place["top_logprobs"]}
                        for place in text["content"]
                    ]
                else:
                    tokens, tops = text["tokens"], [top or {} for top in text["top_logprobs"]]
                places = [(number[token], top) for token, top in zip(tokens, tops, strict=True)]
                assert all(isinstance(v, (int, float)) for top in tops for v in top.values()), (
                    "a logprob is no number"
                )
            except (
                AssertionError,
                json.JSONDecodeError,
                AttributeError,
                TypeError,
                ValueError,
            ) as error:
                raise UserError(
                    f"{path}, line {line_number}, is not a text with top_logprobs ({error})."
                ) from None
            except KeyError as error:
                raise UserError(
                    f"{path}, line {line_number}: {error} is missing, or no token of the vocabulary. A line is "
                    '{"tokens": ["a", ...], "top_logprobs": [{"a": -0.1, ...}, ...]} or {"content": [{"token": "a", '
                    '"top_logprobs": [{"token": "a", "logprob": -0.1}, ...]}, ...]}.'
                ) from None
            n = -(-len(places) // L)
            x, ids = np.zeros((n, L), dtype=np.int64), np.zeros((n, L, K), dtype=np.int64)
            logp = np.full((n, L, K), -np.inf)
            for i, (token, top) in enumerate(places):
                x[i // L, i % L] = token
                known = [(number[t], value) for t, value in top.items() if t in number]
                unknown += len(top) - len(known)
                known = sorted(known, key=lambda pair: -pair[1])[:K]
                if i % L and known:  # the first token of a row has no context in it
                    ids[i // L, i % L] = known[0][0]
                    ids[i // L, i % L, : len(known)], logp[i // L, i % L, : len(known)] = zip(
                        *known, strict=True
                    )
            labels += int(np.isfinite(logp[:, :, 0]).sum())
            writer.add(x, ids, logp)
    if not labels:
        raise UserError(
            f"{path} holds no label: no place after a text's first has top_logprobs of the vocabulary."
        )
    writer.finish(source=path, unknown_candidates=unknown)
