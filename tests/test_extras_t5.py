"""
python -m pytest tests/test_extras_t5.py        encoder-decoders, their drafters, what these learn
"""

import json
import random
import types

import numpy as np
import pytest
import torch
import transformers
from conftest import run, tiny_model
from test_extras_huggingface import (
    OURS,
    SMALL,
    WORDS,
    Paths,
    check_same,
    exact_distribution,
    make,
    ours,
)

import data
import metrics
from drafters import Lookup, NGram, load_drafter, load_model
from extras import t5
from plumbing.randomness import seeded
from plumbing.runs import read_log
from speculative import Network, generate, speculate

SOURCE = 6
ROW = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """-> two T5, the second the drafter of the first, as hf:folder."""
    root = tmp_path_factory.mktemp("t5")
    return [make("t5", root / str(i), i) for i in (1, 2)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The same with three tokens, for enumeration."""
    root = tmp_path_factory.mktemp("t53")
    return [make("t5", root / str(i), i, words=WORDS[:3]) for i in (1, 2)]


def decoder_of(path, source, dtype=torch.float32):
    model, _ = t5.load_model(path)
    return model.to(dtype).encode(torch.tensor(source))


@torch.no_grad()
def test_greedy_text_is_what_transformers_itself_generates(models):
    """Token for token, in float64, where no rounding decides."""
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(models[0][3:], dtype=torch.float64)
    source = torch.randint(3, 9, (3, 5), generator=seeded(0))
    target = decoder_of(models[0], source.tolist(), torch.float64)
    got = generate(target, torch.zeros(3, 1, dtype=torch.long), 12, temperature=0)
    want = theirs.generate(
        source,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=-1,
        suppress_tokens=[10, 11],  # rows that pad the head
        attention_mask=torch.ones_like(source),
    )
    assert torch.equal(got, want)
    assert len(got[:, 1:].unique()) > 2  # it writes something


@torch.no_grad()
def test_cached_states_are_those_without_a_cache_after_tokens_are_forgotten(models):
    source = torch.randint(1, 9, (3, 4), generator=seeded(1))
    source[0, 2:] = 0  # a short source, padded
    target = decoder_of(models[0], source.tolist(), torch.float64)
    x = torch.randint(1, 9, (3, 16), generator=seeded(2))
    whole = target.hidden(x)
    cache = target.new_cache(3)
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(target.hidden(x[:, :9], cache), whole[:, :9], **close)
    cache.length = 7
    torch.testing.assert_close(target.hidden(x[:, 7:12], cache), whole[:, 7:12], **close)
    cache.length = 0
    torch.testing.assert_close(target.hidden(x, cache), whole, **close)


@torch.no_grad()
def test_padding_of_a_source_changes_nothing(models):
    x = torch.tensor([[0, 3, 4]])
    short = decoder_of(models[0], [[3, 4, 5]]).hidden(x)
    torch.testing.assert_close(decoder_of(models[0], [[3, 4, 5, 0, 0]]).hidden(x), short)


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("name", [*OURS, "t5"])
def test_speculation_keeps_the_distribution_given_a_source(name, gamma, tiny, monkeypatch):
    """By enumeration: a source of four tokens, the decoder's start, then three drawn ones."""
    source = [2, 1, 2, 1]
    target = decoder_of(tiny[0], [source])
    drafter = t5.load_model(tiny[1])[0] if name == "t5" else ours(name)
    conditioned = t5.condition_drafter(drafter, torch.tensor(source))
    found = Paths(monkeypatch).distribution(
        lambda: tuple(speculate(target, conditioned, torch.tensor([0]), 3, gamma=gamma).tolist())
    )
    check_same(found, exact_distribution(target, [0], 3))


@torch.no_grad()
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_text_with_drafts_is_the_targets_own(gamma, models):
    target, drafter = (t5.load_model(path)[0].double() for path in models)
    gpt = tiny_model(V=10, causal=True, block_size=32).double()
    x = torch.tensor([0])
    for source in torch.randint(3, 9, (4, 3), generator=seeded(0)):
        decoder = target.encode(source[None])
        want = generate(decoder, x[None], 20, temperature=0)[0]
        for made in (drafter, target, Lookup(10), Network(gpt)):
            conditioned = t5.condition_drafter(made, source)
            got = speculate(decoder, conditioned, x, 20, gamma=gamma, temperature=0)
            assert torch.equal(got, want)


def test_lookup_copies_from_the_source_as_well():
    conditioned = t5.condition_drafter(Lookup(10), torch.tensor([3, 4, 5, 6, 7, 1]))
    drafts, q = conditioned.propose(torch.tensor([0, 4, 5]), 3, {}, None)
    assert drafts.tolist() == [6, 7, 1] and q[0].argmax() == 6
    assert len(conditioned.propose(torch.tensor([0]), 3, {}, None)[0]) == 0


def test_models_that_are_no_encoder_decoders_raise(tmp_path, error_of):
    shape = dict(vocab_size=12, d_model=16, encoder_layers=1, decoder_layers=1)
    bart = transformers.BartConfig(**shape, decoder_start_token_id=1)
    transformers.BartForConditionalGeneration(bart).save_pretrained(tmp_path / "bart")
    from test_extras_huggingface import tokenizer

    tokenizer(WORDS, True).save_pretrained(tmp_path / "bart")
    assert "adds a bias" in error_of(t5.load_model, f"hf:{tmp_path / 'bart'}")
    path = make("llama", tmp_path / "llama", 1)
    assert "has no encoder" in error_of(t5.load_model, path)


# --------------------------------------------------------------------------------------------------
# learning


def pairs_dataset(folder, path):
    """
    A folder of rows: a source of 4 to 6 tokens, the start, the source backwards, its end.
    """
    dice = random.Random(3)
    rows = []
    for _ in range(400):
        source = dice.choices(range(3, 9), k=dice.randint(3, 5))
        text = [*source, 1] + [0] * (SOURCE - 1 - len(source)) + [0, *reversed(source)]
        rows.append(text + [1] * (ROW - len(text)))
    meta = data.tokenizers.hf_meta(path[3:])
    meta |= {"row": ROW, "source_tokens": SOURCE, "train_pairs": 300}
    train = np.array(rows[:300]).flatten()
    data.write(str(folder), train, np.array(rows[300:]).flatten(), meta)
    return str(folder)


SMALL_KNOBS = {k: v for k, v in SMALL.items() if k not in ("method", "iters_per_round")}


def learn(tmp_path, name, **kw):
    """Runs the task kd -> the first and the last validation loss."""
    out_dir = str(tmp_path / name)
    knobs = {**vars(t5.cfg), **SMALL_KNOBS, "max_iters": 60, "out_dir": out_dir, **kw}
    t5.main(types.SimpleNamespace(**knobs))
    if kw["drafter"] == "ngram":
        return None
    losses = [line["val_loss"] for line in read_log(out_dir) if "val_loss" in line]
    return losses[0], losses[-1]


@torch.no_grad()
def alpha(path, drafter, rows):
    """(n, S + ...) int64 -> the mean of sum min(p, q) on 8 tokens of the target for each source."""
    target, _ = t5.load_model(path)
    found = []
    for row in rows:
        source = row[:SOURCE]
        decoder = target.encode(source[None])
        text = generate(decoder, torch.zeros(1, 1, dtype=torch.long), 8, generator=seeded(5))
        conditioned = t5.condition_drafter(drafter, source)
        found.append(metrics.overlap(decoder, conditioned, text, 1, {}, 1))
    return torch.cat(found).nanmean().item()


@torch.no_grad()
def test_the_loss_is_of_what_is_written_up_to_the_first_end(models):
    target, drafter = (t5.load_model(path)[0] for path in models)
    rows = torch.tensor([[3, 4, 1, 0, 5, 6, 1, 1, 1], [7, 8, 1, 0, 5, 5, 6, 6, 6]])
    want = 0.0
    for row, n in ((rows[0], 3), (rows[1], 5)):
        x = row[None, 3 : 3 + n]
        log_target = target.encode(row[None, :3])(x)[0].log_softmax(-1)
        log_drafter = drafter.encode(row[None, :3])(x)[0].log_softmax(-1)
        want += (log_target.exp() * (log_target - log_drafter)).sum().item() / 8
    assert t5.t5_loss(drafter, rows, None, target, 3, 1).item() == pytest.approx(want, rel=1e-4)
    other = rows.clone()
    other[0, 7:] = 4  # what follows an end does not count
    loss = t5.t5_loss(drafter, other, None, target, 3, 1)
    assert loss.item() == pytest.approx(want, rel=1e-4)


def test_kd_of_a_t5_raises_alpha_resumes_and_its_folder_loads_again(models, tmp_path):
    dataset = pairs_dataset(tmp_path / "data", models[0])
    how = dict(target=models[0], dataset=dataset, drafter=models[1])
    first, last = learn(tmp_path, "kd", **how)
    assert last < 0.8 * first
    ckpt = tmp_path / "kd" / "ckpt.pt"
    run("-m", "extras.huggingface", f"--ckpt={ckpt}", f"--out={tmp_path / 'hf'}")
    x = data.blocks(data.load(dataset).val, SOURCE, 12)
    paths = (models[1], str(ckpt), f"hf:{tmp_path / 'hf'}")
    before, after, again = (alpha(models[0], t5.load_model(path)[0], x) for path in paths)
    assert after > before + 0.1 and again == pytest.approx(after)
    learn(tmp_path, "kd", **how, init_from="resume", max_iters=62)


def test_a_t5_learns_from_the_text_alone_without_a_teacher(models, tmp_path):
    dataset = pairs_dataset(tmp_path / "data", models[0])
    how = dict(target="hf:nowhere", dataset=dataset, drafter=models[1], learn="text")
    first, last = learn(tmp_path, "text", **how)
    assert last < 0.9 * first


@pytest.mark.parametrize("name", ["lstm", "ngram"])
def test_our_drafters_learn_from_a_target_with_an_encoder(name, models, tmp_path):
    """They see what the decoder writes, not the source."""
    target = models[0]
    dataset = pairs_dataset(tmp_path / "data", target)
    how = dict(target=target, dataset=dataset, drafter=name, pseudo_tokens=10_000)
    x = data.blocks(data.load(dataset).val, SOURCE, 12)
    found = {}
    kinds = ("dataset", "teacher", "student") if name == "lstm" else ("teacher",)
    model, checkpoint = t5.load_model(target)
    for kd_data in kinds:
        losses = learn(tmp_path, kd_data, **how, kd_data=kd_data)
        assert losses is None or losses[1] < losses[0] or kd_data != "dataset"
        file = "ngram.txt" if name == "ngram" else "ckpt.pt"
        path = str(tmp_path / kd_data / file)
        found[kd_data] = alpha(target, load_drafter(path, model, checkpoint["meta"]), x)
    untrained = Network(tiny_model(V=10, causal=True, block_size=48, seed=3))
    assert all(a > alpha(target, untrained, x) + 0.05 for a in found.values()), found


def test_the_baselines_learn_from_the_text_alone(models, tmp_path):
    dataset = pairs_dataset(tmp_path / "data", models[0])
    how = dict(target="hf:nowhere", dataset=dataset, learn="text")
    first, last = learn(tmp_path, "lstm", **how, drafter="lstm")
    assert last < first
    assert load_model(str(tmp_path / "lstm" / "ckpt.pt"))[0].config.block_size == ROW - SOURCE
    learn(tmp_path, "ngram", **how, drafter="ngram")
    ngram, _ = NGram.load(tmp_path / "ngram" / "ngram.txt")
    assert ngram.counts[0][0] == 300  # a start for each text; the padding of sources is not counted


def test_knobs_that_make_no_sense_raise_before_any_work(models, tmp_path, error_of):
    knobs = {**vars(t5.cfg), "out_dir": str(tmp_path / "x"), "device": "cpu"}
    for change, said in (
        ({"task": "speak"}, "'sample'"),
        ({"learn": "x"}, "'text'"),
        ({"smoothing": "x"}, "'laplace'"),
        ({"ngram_n": 0}, "ngram_n is 0"),
        ({"pseudo_tokens": 0}, "pseudo_tokens is 0"),
        ({"learn": "text", "kd_data": "student"}, "wrote itself"),
        ({"task": "sample", "gamma": -1}, "gamma is -1"),
        ({"task": "sample", "top_p": 0.0}, "top_p is 0"),
        ({"task": "eval", "top_k": -1}, "top_k is -1"),
        ({"dataset": "pydoc_char", "task": "kd"}, "pydoc_char"),
        ({"task": "sample", "target": models[0]}, "text to read"),
        ({"task": "eval", "target": models[0]}, "Name drafters"),
    ):
        assert said in error_of(t5.main, types.SimpleNamespace(**{**knobs, **change}))
    assert not (tmp_path / "x").exists()


# --------------------------------------------------------------------------------------------------
# the commands


def test_pairs_in_a_tokenizer_of_transformers_keep_their_borders(models, tmp_path):
    """
    For an encoder-decoder as rows; for a decoder as a stream whose batches begin with an article.
    """
    dice = random.Random(0)
    articles = [" ".join(dice.choices("abcdef", k=dice.randint(2, 9))) for _ in range(60)]
    pairs = [{"article": article, "highlights": "f e"} for article in articles]
    data.write_jsonl(tmp_path / "news.jsonl", pairs)
    small = [f"--input={tmp_path / 'news.jsonl'}", "--prompt_tokens=6", "--num_proc=1"]
    small += ["--val_fraction=0.5", "--summary_tokens=5", "--prefix=a "]
    tokenizers = {"t5": models[0], "llama": make("llama", tmp_path / "llama_model", 1)}
    out = {kind: tmp_path / kind for kind in tokenizers}
    for kind, path in tokenizers.items():
        how = [f"--tokenizer={path}", f"--out_dir={out[kind]}"]
        run("data/cnn_dailymail/prepare.py", *how, *small, env={"HF_HOME": f"{tmp_path}/cache"})
    corpus = data.load(str(out["t5"]))
    encode, decode = data.encoder(corpus.meta)
    summary = [0, *encode("f e"), 1, 1]  # the decoder's start, the text, its end and the end again
    for row in data.batch(corpus.train, 50, 11, seeded(0)).tolist():
        assert row[6:] == summary and row[0] == encode("a")[0] and row.count(1) == 3
        # decode writes no padding
        assert any(article.startswith(decode(row[1:5])) for article in articles)
    prompts = t5.read_prompts(out["t5"] / "prompts.jsonl", 9)
    assert len(prompts) == 9 and {reference for _, reference in prompts} == {"f e"}
    source, start = t5.encode_source(corpus.meta, prompts[0][0], "cpu")
    assert len(source) == 6 and source[-1] == 1 and start.tolist() == [0]
    corpus = data.load(str(out["llama"]))
    assert (corpus.train[corpus.train.starts[1:] - 1] == 1).all() and len(corpus.train.starts) == 30
    rows = data.batch(corpus.train, 50, 5, seeded(0)).tolist()
    starts = corpus.train.starts
    assert {tuple(row) for row in rows} <= {tuple(corpus.train[i : i + 5]) for i in starts}


def test_summaries_and_the_table_of_drafters(models, tmp_path):
    """Only the decoder's text is printed; prompts are sources, which a T5 that drafts reads too."""
    target, drafter = models
    how = ["-m", "extras.t5", f"--target={target}", "--device=cpu"]
    prompt = ["--task=sample", "--prompt=a b c a b", "--length=20"]
    shown, _ = run(*how, *prompt, f"--draft={drafter}")
    assert "sample 4" in shown and "per forward pass" in shown
    assert "a b c a b" not in shown.split("sample 1")[1]
    shown, _ = run(*how, *prompt, "--num_samples=1")
    assert "sample 1" in shown and "per forward pass" not in shown
    dice = random.Random(0)
    pairs = [
        {"prompt": " ".join(dice.choices("abcdef", k=6)), "reference": "a b c"} for _ in range(9)
    ]
    data.write_jsonl(tmp_path / "prompts.jsonl", pairs)
    files = [f"--prompts={tmp_path / 'prompts.jsonl'}", f"--out={tmp_path / 'eval'}"]
    ngram = str(tmp_path / "ngram.txt")
    text = torch.randint(3, 9, (200,), generator=seeded(4)).numpy()
    NGram(2, 10).fit(text).save(ngram, data.tokenizers.hf_meta(target[3:]))
    drafts = f"--draft={drafter},{target},{ngram},lookup"
    small = ["--num_samples=9", "--length=20", "--gamma=2"]
    run(*how, "--task=eval", drafts, *files, *small)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())
    rows = {row["drafter"]: row for row in report["rows"]}
    assert set(rows) == {"the target alone", drafter, target, ngram, "lookup"}
    assert rows[target]["alpha"] == pytest.approx(1, abs=1e-3)
    assert rows[target]["alpha_counted"] > 0.99
    assert 0.05 < rows[drafter]["alpha"] < 0.98
    assert all(0 <= row["rouge2"] <= 1 for row in rows.values())
    assert rows["lookup"]["propose_rate"] < rows[target]["propose_rate"] == 1
    for name in (target, "lookup"):  # rounds without a proposal are plain steps
        row = rows[name]
        args = row["alpha"], row["c"], row["gamma"], row["verify"], row["propose_rate"]
        assert row["predicted"] == pytest.approx(metrics.predicted_speedup(*args))
    assert "ROUGE-2" in (tmp_path / "eval" / "eval.txt").read_text()


def test_a_small_t5_its_pairs_and_its_training_need_no_download(tmp_path):
    """The first commands of lesson 6: a summary begins its article, and the target learns."""
    shape = ["--small=1,2,16", "--tiny=1,2,8", "--vocab_size=400", "--sentences=2"]
    run("lessons/small_t5.py", f"--out_dir={tmp_path}", *shape, "--shortest=60", "--longest=70")
    pairs = data.read_jsonl(tmp_path / "pairs.jsonl")
    assert all(pair["article"].startswith(pair["highlights"]) for pair in pairs)
    assert len({pair["highlights"] for pair in pairs}) == len(pairs) > 1000
    small = f"hf:{tmp_path / 'small'}"
    dataset = str(tmp_path / "data")
    how = [f"--tokenizer={small}", f"--input={tmp_path / 'pairs.jsonl'}", f"--out_dir={dataset}"]
    how += ["--prompt_tokens=24", "--summary_tokens=20", "--num_proc=1"]
    run("data/cnn_dailymail/prepare.py", *how)
    corpus = data.load(dataset)
    row = corpus.train[:44].tolist()
    decode = data.encoder(corpus.meta)[1]
    assert row[23:25] == [1, 0]
    assert decode(row[:24]).removeprefix("summarize: ")[:20] == decode(row[24:])[:20]
    kw = dict(dataset=dataset, drafter=small, learn="text", max_iters=20)
    first, last = learn(tmp_path, "target", **kw)
    assert 1 < last < first < 7  # from log(400) = 6.0 on
    target, checkpoint = t5.load_model(str(tmp_path / "target" / "ckpt.pt"))
    assert data.same_vocabulary(checkpoint["meta"], corpus.meta) and checkpoint["meta"]["eot"] == 1
    assert target.encode(torch.tensor([row[:24]]))(torch.tensor([[0]])).shape == (1, 1, 400)
