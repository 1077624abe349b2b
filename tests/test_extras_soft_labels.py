"""
python -m pytest tests/test_extras_soft_labels.py        soft labels: the loss, the files, the runs
"""

import gc
import json
import math
import os
import types
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import knobs, needs_gpt2, run, tiny_model

import data
import train
from distill import divergence_between
from drafters import load_model
from extras import soft_labels as S
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded

WAYS = ("none", "renorm", "tail")


@pytest.fixture(scope="module")
def teacher(markov, tmp_path_factory):
    """The path of a small GPT that has learned the markov language."""
    folder = tmp_path_factory.mktemp("target")
    kw = dict(n_embd=32, batch_size=32, max_iters=200, eval_interval=200, learning_rate=3e-3)
    train.main(knobs(folder, dataset=markov, objective="ar", warmup_iters=10, **kw))
    return str(folder / "ckpt.pt")


def settings(teacher, out_dir, **kw):
    """Knobs of a short run."""
    small = dict(n_layer=2, n_head=2, n_embd=16, batch_size=4, warmup_iters=2, eval_iters=1)
    small |= dict(max_iters=4, eval_interval=2, learning_rate=1e-3, ema=0.9, n_tokens=3000, topk=3)
    small |= dict(gradient_accumulation_steps=1, device="cpu", drafter="gpt")
    small |= dict(teacher=str(teacher), out_dir=str(out_dir))
    return types.SimpleNamespace(**{**vars(S.cfg), **small, **kw})


# --------------------------------------------------------------------------------------------------
# the loss


def labels(n=9, V=7, K=3, seed=0, scale=1.0):
    """-> logits (n, V) float64, and the top K of another distribution."""
    logits = torch.randn(n, V, generator=seeded(seed), dtype=torch.float64) * scale
    other = torch.randn(n, V, generator=seeded(seed, 1), dtype=torch.float64)
    logp, ids = other.log_softmax(-1).topk(K)
    return logits, ids, logp


@pytest.mark.parametrize("missing", WAYS)
def test_soft_cross_entropy_equals_its_definition(missing):
    logits, ids, logp = labels()
    got = S.soft_cross_entropy(logits, ids, logp, missing)
    for i in range(len(logits)):
        p = logits[i].softmax(-1)
        w = logp[i].exp()
        want = -sum(w[k] * p[ids[i, k]].log() for k in range(3))
        if missing == "renorm":
            want = want / w.sum()
        if missing == "tail":
            want = want - (1 - w.sum()) * (1 - p[ids[i]].sum()).log()
        assert got[i].item() == pytest.approx(want.item())


@pytest.mark.parametrize("missing", WAYS)
def test_its_gradient_is_right_also_with_repeated_ids(missing):
    logits, ids, logp = labels()
    ids[0] = ids[0, 0]  # three times the same token
    logp[1, 1:] = -math.inf  # one candidate only
    ids[1] = ids[1, 0]
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: S.soft_cross_entropy(z, ids, logp, missing), logits)
    if missing == "none":  # W softmax(z) - scatter(w): the W matters
        (grad,) = torch.autograd.grad(S.soft_cross_entropy(logits, ids, logp).sum(), logits)
        w = logp.exp()
        scattered = torch.zeros_like(logits).scatter_add(1, ids, w)
        want = w.sum(-1, keepdim=True) * logits.softmax(-1) - scattered
        torch.testing.assert_close(grad, want)


def test_all_of_the_vocabulary_is_the_dense_cross_entropy_and_one_hot_the_hard_one():
    logits, ids, logp = labels(K=7)
    target = torch.zeros_like(logits).scatter(1, ids, logp.exp())
    dense = F.cross_entropy(logits, target, reduction="none")
    hard = F.cross_entropy(logits, ids[:, 0], reduction="none")
    for missing in WAYS:
        torch.testing.assert_close(S.soft_cross_entropy(logits, ids, logp, missing), dense)
        one_hot = S.soft_cross_entropy(logits, ids[:, :1], torch.zeros(9, 1), missing)
        torch.testing.assert_close(one_hot, hard)


@pytest.mark.parametrize("missing", WAYS)
def test_huge_logits_give_finite_losses_and_gradients(missing):
    logits, ids, logp = labels(scale=1e4)
    logits.requires_grad_()
    loss = S.soft_cross_entropy(logits, ids, logp, missing).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_soft_loss_of_all_log_probs_is_the_distance_to_the_teacher(teacher, tmp_path):
    """
    K = V: kl_fwd plus the teacher's entropy, at every position except the first; nothing labelled:
    zero.
    """
    model, saved = load_model(teacher)
    x = torch.randint(8, (6, 16), generator=seeded(0))
    S.soft_from_teacher(model, x, str(tmp_path / "soft"), saved["meta"], 8, batch_size=4)
    soft = S.load_soft(str(tmp_path / "soft"))
    student = tiny_model(V=8, causal=True, seed=3)
    rows = torch.tensor([4, 0, 1])
    batch = torch.cat([x[rows], rows[:, None]], 1)
    got = S.soft_loss(student, batch, None, soft)
    log_student = student(x[rows, :-1]).log_softmax(-1).flatten(0, 1)
    log_teacher = model(x[rows, :-1]).log_softmax(-1).flatten(0, 1)
    entropy = -(log_teacher.exp() * log_teacher).sum(-1)
    want = divergence_between(log_student, log_teacher, "kl_fwd") + entropy
    torch.testing.assert_close(got, want.mean())

    both = S.soft_loss(student, batch, None, soft, ce_weight=0.5)
    hard = F.cross_entropy(student(x[rows, :-1]).flatten(0, 1), x[rows, 1:].flatten())
    torch.testing.assert_close(both, got + 0.5 * hard)

    soft.logp = np.full_like(soft.logp, -np.inf)
    nothing = S.soft_loss(student, batch, None, soft)
    nothing.backward()
    assert nothing == 0


# --------------------------------------------------------------------------------------------------
# labels on the disk


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_labels_in_the_number_format_of_the_run(dtype, teacher, tmp_path, monkeypatch):
    seen = []
    label = S.soft_from_teacher

    def spy(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        label(*args)

    monkeypatch.setattr(S, "soft_from_teacher", spy)
    S.main(settings(teacher, tmp_path, dtype=dtype, max_iters=1))
    assert seen == [dtype == "bfloat16"]


def test_labelling_that_is_killed_goes_on_to_the_same_labels(teacher, tmp_path, monkeypatch):
    model, saved = load_model(teacher)
    x = torch.randint(8, (11, 16), generator=seeded(0))
    S.soft_from_teacher(model, x, str(tmp_path / "a"), saved["meta"], 3, batch_size=2)
    real = S.SoftWriter.add
    batches = []

    def add(*args):
        batches.append(1)
        if len(batches) == 4:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(S.SoftWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        S.soft_from_teacher(model, x, str(tmp_path / "b"), saved["meta"], 3, batch_size=2)
    with open(tmp_path / "b" / "tokens.bin.tmp", "ab") as f:
        f.write(b"half a row")
    batches[:] = [1] * 4
    S.soft_from_teacher(model, x, str(tmp_path / "b"), saved["meta"], 3, batch_size=2)
    assert len(batches) - 4 == 3  # of 6: the first three were there
    a = S.load_soft(str(tmp_path / "a"))
    b = S.load_soft(str(tmp_path / "b"))
    assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("tokens", "ids", "logp"))


def chat_line(texts):
    """[(token, [candidates]), ...] -> a line as chat APIs give it."""
    content = []
    for token, candidates in texts:
        tops = [{"token": c, "logprob": -i - 0.5} for i, c in enumerate(candidates)]
        content.append({"token": token, "top_logprobs": tops})
    return json.dumps({"content": content}) + "\n"


def test_texts_of_an_api_teacher(markov, tmp_path, error_of):
    """
    Both shapes of JSON; unknown candidates go missing, unknown emitted tokens raise with their
    line.
    """
    meta = data.load(markov).meta
    a, b, c = meta["itos"][:3]
    chat = chat_line([(a, [a, b]), (b, [c]), (c, [a, "?", c]), (a, [b, c, a]), (b, [])])
    old = {"logprobs": {"tokens": [a, c], "top_logprobs": [None, {c: -0.1, b: -2.5}]}}
    path = tmp_path / "api.jsonl"
    path.write_text(chat + json.dumps(old) + "\n")
    S.soft_from_jsonl(str(path), str(tmp_path / "soft"), meta, 4, 2)
    soft = S.load_soft(str(tmp_path / "soft"))
    assert soft.tokens.tolist() == [[0, 1, 2, 0], [1, 0, 0, 0], [0, 2, 0, 0]]
    assert soft.meta["unknown_candidates"] == 1
    assert soft.ids[0, 1:].tolist() == [[2, 2], [0, 2], [1, 2]]
    none = -math.inf
    assert soft.logp[0].tolist() == [[none, none], [-0.5, none], [-0.5, -2.5], [-0.5, -1.5]]
    assert (soft.logp[1] == none).all()
    np.testing.assert_allclose(soft.logp[2, 1], [-0.1, -2.5], rtol=1e-6)

    # as some editors save it
    path.write_bytes(b"\xef\xbb\xbf" + chat.strip().encode() + b"\r\n\r\n")
    S.soft_from_jsonl(str(path), str(tmp_path / "again"), meta, 4, 2)
    assert (S.load_soft(str(tmp_path / "again")).ids == soft.ids[:2]).all()

    wrong = {"{}": "'tokens'", "[": "line 1", '{"tokens": ["?"], "top_logprobs": [{}]}': "'?'"}
    wrong['{"tokens": [], "top_logprobs": [{}]}'] = "0 tokens, 1 top_logprobs"
    wrong['{"tokens": ["a"], "top_logprobs": [{"a": "x"}]}'] = "'x', no number"
    at_most_0 = "line 1: a log-probability is 0.9; log-probabilities are at most 0"
    wrong['{"tokens": ["a"], "top_logprobs": [{"a": 0.9}]}'] = at_most_0
    for text, words in wrong.items():
        path.write_text(text)
        assert words in error_of(S.soft_from_jsonl, str(path), str(tmp_path / "x"), meta, 4, 2)
    assert "holds no soft labels" in error_of(S.load_soft, str(tmp_path / "x"))


def soft_of(path, folder, meta, L, K):
    """What soft_from_jsonl makes of a .jsonl -> labels."""
    S.soft_from_jsonl(str(path), str(folder), meta, L, K)
    return S.load_soft(str(folder))


def test_a_whole_response_has_a_text_for_each_answer(markov, tmp_path, error_of):
    meta = data.load(markov).meta
    a, b, c = meta["itos"][:3]
    content = json.loads(chat_line([(a, []), (b, [c])]))
    chat = {"message": {"content": a + b}, "logprobs": content | {"refusal": None}}
    legacy = {"tokens": [c, a], "token_logprobs": [None, -1], "top_logprobs": [None, {b: -0.5}]}
    responses = [
        {"id": "x", "choices": [chat, chat]},
        {"choices": [{"text": c, "logprobs": legacy}]},
    ]
    path = tmp_path / "api.jsonl"
    path.write_text("\n".join(map(json.dumps, responses)))
    soft = soft_of(path, tmp_path / "soft", meta, 2, 1)
    assert soft.tokens.tolist() == [[0, 1], [0, 1], [2, 0]]
    assert soft.ids[:, 1, 0].tolist() == [2, 2, 1]

    args = [str(path), str(tmp_path / "other"), meta, 2, 1]
    path.write_text(json.dumps({"choices": [{"text": c, "logprobs": None}]}))
    assert "ask the server for logprobs" in error_of(S.soft_from_jsonl, *args)


def test_a_token_that_is_not_known_ends_a_row_and_is_counted(markov, tmp_path, capsys, error_of):
    meta = data.load(markov).meta
    a, b, c = meta["itos"][:3]
    texts = [(a, [a]), (b, [c, "?!"]), ("?", [a]), (c, [c]), (a, [a, b]), ("!", [])]
    (tmp_path / "api.jsonl").write_text(chat_line(texts))
    soft = soft_of(tmp_path / "api.jsonl", tmp_path / "soft", meta, 4, 1)
    assert soft.tokens.tolist() == [[0, 1, 0, 0], [2, 0, 0, 0]]
    assert np.isfinite(soft.logp[..., 0]).tolist() == [[False, True, False, False]] * 2
    assert soft.ids[:, 1, 0].tolist() == [2, 0]
    assert (soft.meta["unknown_tokens"], soft.meta["unknown_candidates"]) == (2, 1)
    (said,) = capsys.readouterr().out.splitlines()
    assert "labels at 2 of 6 tokens; left out are 2 tokens and 1 candidates" in said
    assert "first: line 1, '?'" in said
    (tmp_path / "api.jsonl").write_text(chat_line([*texts, *texts[2:3] * 3]))
    args = [str(tmp_path / "api.jsonl"), str(tmp_path / "other"), meta, 4, 1]
    assert "5 of 9 tokens are no token" in error_of(S.soft_from_jsonl, *args)


def test_null_nan_and_a_sentinel_are_log_probabilities_that_nobody_knows(markov, tmp_path):
    meta = data.load(markov).meta
    a, b, c = meta["itos"][:3]
    unknown = (None, math.nan, -math.inf, -9999.0, -9999)
    tops = [{a: -0.5, b: value, c: 1e-3} for value in unknown]
    tops += [{a: value, b: value} for value in unknown]
    text = {"tokens": [a] * 11, "top_logprobs": [None, *tops]}
    (tmp_path / "api.jsonl").write_text(json.dumps(text))
    soft = soft_of(tmp_path / "api.jsonl", tmp_path / "soft", meta, 11, 3)
    assert soft.ids[0, 1:6].tolist() == [[2, 0, 2]] * 5  # c, a, and c again for none
    assert soft.logp[0, 1:6].tolist() == [[0, -0.5, -math.inf]] * 5  # above 0 by rounding
    assert (soft.logp[0, 6:] == -math.inf).all() and soft.meta["labels"] == 5


@pytest.mark.parametrize("missing", WAYS)
def test_labels_without_any_known_mass_do_not_count(missing):
    """Also where they lie on the disk since before they were left out."""
    tokens = torch.randint(7, (3, 9), generator=seeded(0))
    _, ids, logp = labels(n=27)
    soft = types.SimpleNamespace(
        ids=ids.view(3, 9, 3).numpy(), logp=logp.view(3, 9, 3).float().numpy()
    )
    student = tiny_model(causal=True)
    batch = torch.cat([tokens, torch.arange(3)[:, None]], 1)
    soft.logp[0, 4] = soft.logp[2, 1] = -math.inf
    want = S.soft_loss(student, batch, None, soft, missing=missing)
    soft.logp[0, 4] = -9999
    soft.logp[2, 1] = math.nan
    got = S.soft_loss(student, batch, None, soft, missing=missing)
    got.backward()
    assert torch.equal(got, want)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters())


@needs_gpt2
def test_half_a_character_is_known_by_its_bytes(tmp_path):
    """An emoji is two tokens of GPT-2, whose texts say nothing."""
    halves = [b" x", b" \xf0\x9f\x98", b"\x8a", b" x"]
    ids = [data.gpt2().encode_single_token(half) for half in halves]
    for text in ("\ufffd", "bytes:\\xf0"):
        names = [{"token": " x"}, *[{"token": text, "bytes": [*half]} for half in halves[1:3]]]
        names = [*names, names[0] | {"bytes": None}]
        content = [name | {"top_logprobs": [name | {"logprob": -0.5}]} for name in names]
        line = json.dumps({"logprobs": {"content": content}})
        (tmp_path / "api.jsonl").write_text(line)
        soft = soft_of(tmp_path / "api.jsonl", tmp_path / "soft", data.GPT2_META, 4, 2)
        assert soft.tokens.tolist() == [ids] and soft.ids[0, 1:, 0].tolist() == ids[1:]

        without = line.replace('"bytes"', '"other"')
        (tmp_path / "api.jsonl").write_text(without + "\n" + chat_line([(" x", [" x"])] * 3))
        soft = soft_of(tmp_path / "api.jsonl", tmp_path / "soft", data.GPT2_META, 4, 2)
        assert soft.meta["unknown_tokens"] == soft.meta["unknown_candidates"] == 2
        assert soft.tokens.tolist() == [[ids[0]] * 3 + [0]]


@needs_gpt2
def test_a_server_may_tell_ids_or_pieces(tmp_path):
    ids = data.gpt2().encode("Say: the caf\u00e9 ")
    pieces = ["Say", ":", "\u0120the", "\u0120caf\u00c3\u00a9", "\u0120"]
    for tokens in ([f"token_id:{i}" for i in ids], pieces):
        (tmp_path / "api.jsonl").write_text(chat_line([(token, [token]) for token in tokens]))
        soft = soft_of(tmp_path / "api.jsonl", tmp_path / "soft", data.GPT2_META, 5, 1)
        assert soft.tokens.tolist() == [ids] and soft.ids[0, 1:, 0].tolist() == ids[1:]


def test_a_student_learns_from_a_file_and_what_failed_does_not_stick(markov, tmp_path, error_of):
    a, b, c = data.load(markov).meta["itos"][:3]
    chat = chat_line([(a, [a, b]), (b, [c]), (c, [a, c])])
    path = tmp_path / "new.jsonl"
    kw = dict(soft_data=str(path), dataset=markov, topk=2, soft_length=16, max_iters=1)
    nothing = json.dumps({"tokens": [a, b], "top_logprobs": [None, None]})
    for text in ("", nothing):
        path.write_text(text)
        assert "holds no label" in error_of(S.main, settings("", tmp_path / "new", **kw))
    path.write_text(chat)
    S.main(settings("", tmp_path / "new", **kw))
    folder = kw | {"soft_data": str(tmp_path / "new" / "soft")}  # labels that are there
    S.main(settings("", tmp_path / "folder", **folder))
    one, two = (load_checkpoint(tmp_path / d / "ckpt.pt")["model"] for d in ("new", "folder"))
    assert all(torch.equal(one[name], two[name]) for name in one)

    os.remove(tmp_path / "new" / "ckpt.pt")
    path.write_text(chat * 2)  # what was edited does not pass
    assert "soft_data that holds" in error_of(S.main, settings("", tmp_path / "new", **kw))
    no_dataset = settings("", tmp_path / "y", **(kw | {"dataset": ""}))
    assert "--soft_data needs --dataset" in error_of(S.main, no_dataset)


# --------------------------------------------------------------------------------------------------
# the run


def log_of(folder, key):
    with open(folder / "log.jsonl") as f:
        return [record[key] for record in map(json.loads, f) if key in record]


@pytest.mark.parametrize("missing", WAYS)
def test_a_student_learns_from_soft_labels_and_resumes(missing, teacher, tmp_path, monkeypatch):
    kw = dict(missing=missing, learning_rate=1e-2, ema=0.0, batch_size=16)
    kw |= dict(max_iters=40, eval_interval=20)
    S.main(settings(teacher, tmp_path / "whole", **kw))
    losses = log_of(tmp_path / "whole", "val_loss")
    assert losses[1] < losses[0] < math.log(8)
    assert S.load_soft(str(tmp_path / "whole" / "soft")).ids.shape[1:] == (16, 3)

    real = S.soft_loss
    calls = []

    def stopped(*args, **kw):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(*args, **kw)

    monkeypatch.setattr(S, "soft_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        S.main(settings(teacher, tmp_path / "parts", **kw))
    monkeypatch.undo()
    S.main(settings(teacher, tmp_path / "parts", **kw, init_from="resume"))
    whole, parts = (load_checkpoint(tmp_path / d / "ckpt.pt") for d in ("whole", "parts"))
    leaves = [torch.utils._pytree.tree_leaves([c["model"], c["optimizer"]]) for c in (whole, parts)]
    for x, y in zip(*leaves, strict=True):
        assert torch.equal(x, y) if torch.is_tensor(x) else x == y


def test_mistakes_are_said_before_any_work(teacher, markov, pydoc, tmp_path, error_of):
    def said(**kw):
        words = error_of(S.main, settings(kw.pop("teacher", teacher), tmp_path / "out", **kw))
        assert not (tmp_path / "out").exists()
        return words

    assert "counts texts" in said(drafter="ngram")
    assert "not lstm, cnn" in said(drafter="lstn")
    assert "no such file" in said(soft_data="x.jsonl")
    assert "topk is 9" in said(topk=9)
    assert "topk is 0" in said(topk=0)
    assert "torchrun --nproc_per_node=2" in said(vocab_parallel=True)
    assert "'drop'" in said(missing="drop")
    assert "another vocabulary" in said(dataset=pydoc)
    assert "nothing to resume" in said(init_from="resume")
    train.main(knobs(tmp_path / "d", dataset=markov, max_iters=1))
    assert "masked diffusion model" in said(teacher=tmp_path / "d" / "ckpt.pt")


def test_a_diffusion_model_is_no_drafter(teacher, markov, tmp_path, error_of):
    train.main(knobs(tmp_path / "d", dataset=markov, max_iters=1))
    ckpt = str(tmp_path / "d" / "ckpt.pt")  # it would see the tokens that it learns to predict
    assert "is not a GPT" in error_of(S.main, settings(teacher, tmp_path / "out", drafter=ckpt))


def test_what_does_not_go_with_a_split_vocabulary(teacher, tmp_path, monkeypatch, error_of):
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = settings(teacher, tmp_path, vocab_parallel=True, fsdp=True)
    assert "--vocab_parallel=True" in error_of(S.check_knobs, cfg)
    cfg = settings(teacher, tmp_path, vocab_parallel=True, dropout=0.1)
    assert "dropout is 0.1" in error_of(S.check_knobs, cfg)
    cfg = settings(teacher, tmp_path, vocab_parallel=True, drafter="hf:mine")
    S.check_head(tiny_model(causal=True, arch="lstm"), cfg)
    assert "not that of hf:mine" in error_of(S.check_head, torch.nn.Linear(1, 1), cfg)


def test_the_teacher_is_gone_when_the_student_trains(teacher, tmp_path, monkeypatch):
    seen = []

    def load(*args, **kw):
        model, saved = load_model(*args, **kw)
        seen.append(weakref.ref(model))
        return model, saved

    def fit(*args):
        gc.collect()
        seen.append(seen[0]())

    monkeypatch.setattr(S, "load_model", load)
    monkeypatch.setattr(S, "fit", fit)
    S.main(settings(teacher, tmp_path / "out"))
    assert seen[1:] == [None]


# --------------------------------------------------------------------------------------------------
# two processes


@pytest.fixture(scope="module")
def odd_teacher(tmp_path_factory):
    """A GPT whose 9 tokens do not divide into two halves."""
    folder = tmp_path_factory.mktemp("odd")
    language = ["--vocab_size=9", "--successors=2", "--n_tokens=20000"]
    run("data/markov/prepare.py", f"--out_dir={folder}/data", *language)
    kw = dict(dataset=f"{folder}/data", objective="ar", max_iters=2, eval_interval=2)
    train.main(knobs(folder / "ar", **kw))
    return str(folder / "ar" / "ckpt.pt")


@pytest.mark.parametrize("missing", WAYS)
def test_two_processes_with_half_of_the_vocabulary_each_equal_one(missing, odd_teacher, tmp_path):
    """
    Loss and gradient: after three steps of training the weights are the same, except for the order
    of a sum.
    """
    kw = dict(batch_size=24, max_iters=3, eval_interval=1, dtype="float32", ce_weight=0.5)
    kw |= dict(n_layer=1, learning_rate=1e-2, warmup_iters=1, missing=missing)
    S.main(settings(odd_teacher, tmp_path / "one", **kw))
    split = dict(gradient_accumulation_steps=2, vocab_parallel=True)
    cfg = settings(odd_teacher, tmp_path / "two", **kw, **split)
    args = [f"--{k}={v}" for k, v in vars(cfg).items() if v != getattr(S.cfg, k)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run(*launcher, "-m", "extras.soft_labels", *args, env={"OMP_NUM_THREADS": "1"})
    one, two = (load_checkpoint(tmp_path / d / "ckpt.pt") for d in ("one", "two"))
    for name in one["model"]:
        torch.testing.assert_close(one["model"][name], two["model"][name], atol=2e-5, rtol=1e-4)
    losses = [log_of(tmp_path / d, "loss") for d in ("one", "two")]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, atol=2e-4)
