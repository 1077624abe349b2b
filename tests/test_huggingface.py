"""
python -m pytest tests/test_huggingface.py          models that run through transformers: as exact as our own
"""

import json
import random
import sys
import types

import numpy as np
import pytest
import torch
import transformers
from conftest import run, tiny_model
from test_speculative import Paths, distance, target_law

import data
import distill as D
import eval
import metrics
from drafters import Lookup, NGram, load_drafter, load_model
from plumbing.published import save_published
from plumbing.randomness import seeded
from plumbing.runs import read_log
from speculative import generate, speculate

WORDS = ["<pad>", "</s>", "<unk>", "a", "b", "c", "d", "e", "f", "TL;DR:"]


def tokenizer(words, seq2seq):
    """A tokenizer of whole words that ends a source with </s>, as T5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if seq2seq:
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make(kind, folder, seed, V=12, words=WORDS, **kw):
    """Saves a tiny random model of V logits, whose predictions are far from uniform, and its tokenizer -> hf:folder."""
    torch.manual_seed(seed)
    if kind == "t5":
        shape = dict(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        config = transformers.T5Config(vocab_size=V, feed_forward_proj="gated-gelu", **shape | kw)
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16))  # untied, as FLAN-T5's
    else:
        shape = dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
        )
        shape |= dict(num_key_value_heads=2, max_position_embeddings=48)  # grouped heads
        classes = {
            "llama": "Llama",
            "mistral": "Mistral",
            "qwen": "Qwen2",
            "gemma": "Gemma2",
            "cohere": "Cohere",
        }
        config = getattr(transformers, f"{classes[kind]}Config")(vocab_size=V, **shape | kw)
        model = getattr(transformers, f"{classes[kind]}ForCausalLM")(config)
        for p in model.parameters():
            if p.dim() == 2:
                p.data.mul_(15)
    model.save_pretrained(folder)
    tokenizer(words, kind == "t5").save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> hf:folder: two of each kind, the second the drafter of the first."""
    root = tmp_path_factory.mktemp("hf")
    return {
        f"{kind} {i}": make(kind, root / f"{kind}_{i}", i)
        for kind in ("llama", "t5")
        for i in (1, 2)
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The same with three logits, for enumeration."""
    root = tmp_path_factory.mktemp("hf3")
    names = [(kind, i) for kind in ("llama", "t5") for i in (1, 2)]
    return {
        f"{kind} {i}": make(kind, root / f"{kind}_{i}", i, V=3, words=WORDS[:3])
        for kind, i in names
    }


def loaded(path, source=0):
    model, checkpoint = load_model(path)
    model.source = source
    return model, checkpoint["meta"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_greedy_text_is_what_transformers_itself_generates(kind, models):
    """Token for token, in float64, where no rounding decides."""
    source = 5 if kind == "t5" else 0
    model, _ = loaded(models[f"{kind} 1"], source)
    theirs_of = transformers.AutoModelForSeq2SeqLM if source else transformers.AutoModelForCausalLM
    theirs = theirs_of.from_pretrained(models[f"{kind} 1"][3:], dtype=torch.float64)
    x = torch.randint(3, 9, (3, 5), generator=seeded(0))
    idx = torch.cat([x, torch.zeros(3, 1, dtype=torch.long)], 1) if source else x
    got = generate(model.double(), idx, 12, temperature=0)[:, source:]
    want = theirs.generate(
        x, do_sample=False, max_new_tokens=12, eos_token_id=-1, attention_mask=torch.ones_like(x)
    )
    assert torch.equal(got, want)
    assert len(got[:, -12:].unique()) > 2  # it writes something


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_cached_states_are_those_without_a_cache_when_tokens_are_taken_back_from_rows(kind, models):
    source = 4 if kind == "t5" else 0
    model, _ = loaded(models[f"{kind} 1"], source)
    x = torch.randint(1, 9, (3, 20), generator=seeded(1))
    x[0, 2:4] = 0  # a short source, padded
    whole, cache = model.double().hidden(x), model.new_cache(3)
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(model.hidden(x[:, :9], cache), whole[:, :9], **close)
    cache.forget_after(torch.tensor([7, 7, 7]))  # all alike: one cache
    torch.testing.assert_close(model.hidden(x[:, 7:12], cache), whole[:, 7:12], **close)
    cache.forget_after(torch.tensor([11, 6, 9]))  # each row its own
    rows = torch.stack([x[i, n : n + 4] for i, n in enumerate((11, 6, 9))])
    want = torch.stack([whole[i, n : n + 4] for i, n in enumerate((11, 6, 9))])
    torch.testing.assert_close(model.hidden(rows, cache), want, **close)
    cache.keep(torch.tensor([True, False, True]))
    assert cache.lengths == [15, 13]
    cache.forget_after(torch.tensor([13, 13]))
    torch.testing.assert_close(model.hidden(x[[0, 2], 13:], cache), whole[[0, 2], 13:], **close)


def guesses(name, tiny, V=3):
    if name == "ngram":
        return NGram(3, V).fit(torch.randint(V, (200,), generator=seeded(4)).numpy())
    if name == "lookup":
        return Lookup(V)
    if name in ("llama", "t5"):
        return loaded(tiny[f"{name} 2"], 4 if name == "t5" else 0)[0]
    return tiny_model(V=V, causal=True, seed=2, arch=name)


ALL = ["ngram", "lookup", "gpt", "lstm", "llama"]


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("name", ALL)
def test_the_law_is_a_decoders_by_enumeration(name, gamma, tiny, monkeypatch):
    target, _ = loaded(tiny["llama 1"])
    guess, prompt, paths = guesses(name, tiny), [0, 1, 1, 0, 1], Paths(monkeypatch)
    law = paths.law(
        lambda: tuple(speculate(target, guess, torch.tensor([prompt]), 3, gamma)[0][0].tolist())
    )
    assert sum(law.values()) == pytest.approx(1)
    assert distance(law, target_law(target, prompt, 3)) < 1e-5
    assert max(law.values()) < 0.9  # a choice is left


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("name", [*ALL, "t5"])
def test_the_law_is_that_of_a_decoder_with_an_encoder_by_enumeration(
    name, gamma, tiny, monkeypatch
):
    """A source of four tokens, the decoder's start, then three drawn ones."""
    target, _ = loaded(tiny["t5 1"], 4)
    guess, prompt, paths = guesses(name, tiny), [2, 1, 2, 1, 0], Paths(monkeypatch)
    law = paths.law(
        lambda: tuple(speculate(target, guess, torch.tensor([prompt]), 3, gamma)[0][0].tolist())
    )
    assert sum(law.values()) == pytest.approx(1)
    assert distance(law, target_law(target, prompt, 3)) < 1e-5
    assert max(law.values()) < 0.9


@pytest.mark.parametrize("rows", [2, 5])
def test_a_drafter_whose_head_is_padded_to_another_number_of_rows_drafts_for_the_targets(
    rows, tiny, tmp_path, monkeypatch
):
    path = make("llama", tmp_path / "guess", 3, V=rows, words=WORDS[:2])
    for folder in (tiny["llama 1"][3:], path[3:]):  # the same two tokens
        tokenizer(WORDS[:2], False).save_pretrained(folder)
    (target, meta), paths, cfg = (
        loaded(tiny["llama 1"]),
        Paths(monkeypatch),
        types.SimpleNamespace(**vars(eval.cfg)),
    )
    guess, prompt = load_drafter(path, target, meta, cfg), [0, 1, 1]
    law = paths.law(
        lambda: tuple(speculate(target, guess, torch.tensor([prompt]), 3, 2)[0][0].tolist())
    )
    assert distance(law, target_law(target, prompt, 3)) < 1e-5 and any(2 in x for x in law)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_text_of_a_batch_is_the_targets_own_whose_rows_accept_differently(
    kind, gamma, models
):
    idx = torch.randint(3, 9, (5, 4), generator=seeded(0))
    idx[:, -1], source = 0, 3
    target, guess = (loaded(models[f"{kind} {i}"], source)[0].double() for i in (1, 2))
    for drafter in (guess, target, Lookup(12), tiny_model(V=12, causal=True, block_size=32)):
        got, counts = speculate(target, drafter, idx, 20, gamma, temperature=0)
        assert torch.equal(got, generate(target, idx, 20, temperature=0))
        assert counts.accepted.sum() + counts.row_calls == 5 * 20


def test_models_whose_cache_cannot_be_taken_back_and_heads_of_their_own_kind_are_refused(
    tmp_path, refused
):
    path = make("mistral", tmp_path / "mistral", 1, sliding_window=4)
    assert f"{path} remembers by DynamicSlidingWindowLayer" in refused(load_model, path)
    shape = dict(head_dim=8, layer_types=["full_attention"] * 2, final_logit_softcapping=1.0)
    path = make("gemma", tmp_path / "gemma", 1, **shape)
    assert f"{path} makes its logits in a way of its own" in refused(load_model, path)
    bart = transformers.BartConfig(
        vocab_size=12, d_model=16, encoder_layers=1, decoder_layers=1, decoder_start_token_id=1
    )
    transformers.BartForConditionalGeneration(bart).save_pretrained(tmp_path / "bart")
    tokenizer(WORDS, True).save_pretrained(tmp_path / "bart")
    assert "adds a bias" in refused(load_model, f"hf:{tmp_path / 'bart'}")
    load_model(make("qwen", tmp_path / "qwen", 1))
    load_model(
        make("cohere", tmp_path / "cohere", 1, logit_scale=0.1)
    )  # what scales logits scales hidden states


def test_a_missing_package_or_model_is_one_clear_line_and_each_kind_of_name_names_the_other(
    models, refused, monkeypatch, tmp_path
):
    assert "cannot be loaded" in refused(load_model, f"hf:{tmp_path / 'nothing'}")
    assert "Did you mean hf:?" in refused(load_model, models["llama 1"][3:])
    save_published(
        tmp_path / "own",
        tiny_model(),
        {"meta": {"tokenizer": "char"}, "config": {"dataset": "x"}, "step": 0},
    )
    assert "is read without hf:" in refused(load_model, f"hf:{tmp_path / 'own'}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'transformers>=" in refused(load_model, models["llama 1"])


def test_the_scripts_take_hf_as_target_drafter_and_judge(models, tmp_path):
    target, guess = models["llama 1"], models["llama 2"]
    out, _ = run(
        "sample.py",
        f"--ckpt={target}",
        "--prompt=a b c a b",
        f"--draft={guess}",
        "--gamma=2",
        "--length=20",
    )
    assert "sample 4" in out and "a b c a b" in out and "alpha" in out
    small = ["--num_samples=8", "--length=16", "--latency_batch=1", "--device=cpu"]
    what = (
        f"--out={tmp_path / 'eval'}",
        "--what=genppl,latency,acceptance",
        f"--dataset={words_dataset(tmp_path)}",
    )
    run("eval.py", f"--ckpt={target}", f"--judge={guess}", f"--draft={guess},lookup", *what, *small)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert report["rows"][0]["genppl"] > 1 and report["latency"][0]["s_per_sample"] > 0
    assert {row["drafter"] for row in report["drafters"]} == {guess, "lookup"}


def test_the_scripts_summarise_with_an_encoder(models, tmp_path):
    """Only the decoder's text is printed; prompts are sources, and a drafter with an encoder reads them too."""
    target, guess = models["t5 1"], models["t5 2"]
    shown, _ = run(
        "sample.py", f"--ckpt={target}", "--prompt=a b c a b", f"--draft={guess}", "--length=20"
    )
    assert (
        "sample 4" in shown
        and "a b c a b" not in shown.split("sample 1")[1]
        and "tokens per target call" in shown
    )
    pairs = [
        {"prompt": " ".join(random.Random(i).choices("abcdef", k=6)), "reference": "a b c"}
        for i in range(9)
    ]
    data.write_jsonl(tmp_path / "prompts.jsonl", pairs)
    how = (
        "--what=acceptance",
        f"--prompts={tmp_path / 'prompts.jsonl'}",
        f"--out={tmp_path}",
        "--num_samples=9",
    )
    run(
        "eval.py",
        f"--ckpt={target}",
        f"--draft={guess},{target},lookup",
        *how,
        "--length=20",
        "--gamma=2",
    )
    report = json.loads((tmp_path / "eval.json").read_text())
    alpha = {row["drafter"]: (row["alpha"], row["counted"]) for row in report["drafters"]}
    assert alpha[target][0] == pytest.approx(1, abs=1e-3) and alpha[target][1] > 0.99
    assert 0.05 < alpha[guess][0] < 0.98 and set(report["rouge2"]) == {"the target alone", *alpha}
    _, said = run("sample.py", f"--ckpt={target}", ok=False)
    assert "it needs a prompt to read" in said


SOURCE, ROW = 6, 16


def pairs_dataset(folder, path):
    """A folder of rows for an encoder-decoder: a source of 4 to 6 tokens, the start, the source backwards, its end."""
    dice, rows = random.Random(3), []
    for _ in range(400):
        source = dice.choices(range(3, 9), k=dice.randint(3, 5))
        text = [*source, 1] + [0] * (SOURCE - 1 - len(source)) + [0, *reversed(source)]
        rows.append(text + [1] * (ROW - len(text)))
    meta = data.tokenizers.hf_meta(path[3:]) | {
        "row": ROW,
        "source_tokens": SOURCE,
        "train_pairs": 300,
    }
    data.write(str(folder), np.array(rows[:300]).flatten(), np.array(rows[300:]).flatten(), meta)
    return str(folder)


def distill(tmp_path, name, **kw):
    """Runs distill.py -> the first and the last validation loss; of soft labels, which validate on text, the losses."""
    small = dict(
        device="cpu",
        batch_size=16,
        gradient_accumulation_steps=1,
        eval_interval=5,
        eval_iters=2,
        ema=0.9,
    )
    small |= dict(
        iters_per_round=60,
        learning_rate=1e-2,
        warmup_iters=2,
        n_embd=16,
        divergence="kl_fwd",
        seed=1,
    )
    cfg = types.SimpleNamespace(**{**vars(D.cfg), **small, "out_dir": str(tmp_path / name), **kw})
    D.main(cfg)
    which = "loss" if cfg.method == "soft" else "val_loss"
    losses = [line[which] for line in read_log(cfg.out_dir) if which in line]
    return losses[0], losses[-1]


def alpha(target, drafter, x, prompt):
    cfg = types.SimpleNamespace(**{**vars(eval.cfg), "gamma": 2})
    return (
        metrics.overlap(target, drafter, generate(target, x, 8, generator=seeded(5)), prompt, cfg)
        .mean()
        .item()
    )


@pytest.mark.parametrize("weights", [{}, {"kd_weight": 0.5, "ce_weight": 0.5, "kd_temp": 2.0}])
def test_kd_of_a_t5_lowers_the_loss_and_raises_alpha_and_its_folder_loads_again(
    weights, models, tmp_path
):
    target, guess, dataset = (
        models["t5 1"],
        models["t5 2"],
        pairs_dataset(tmp_path / "data", models["t5 1"]),
    )
    how = dict(
        method="kd",
        teacher=target,
        dataset=dataset,
        drafter=guess,
        export=str(tmp_path / "hf"),
        **weights,
    )
    first, last = distill(tmp_path, "kd", **how)
    assert last < (0.9 if weights else 0.8) * first
    x = data.blocks(data.load(dataset).val, SOURCE + 1, 40)
    judge = loaded(target, SOURCE)[0]
    before, after, again = (
        alpha(judge, loaded(p)[0], x, SOURCE + 1)
        for p in (guess, str(tmp_path / "kd" / "ckpt.pt"), f"hf:{tmp_path / 'hf'}")
    )
    assert after > before + (0 if weights else 0.1) and again == pytest.approx(after)
    distill(tmp_path, "kd", **how | {"init_from": "resume", "iters_per_round": 62, "export": ""})


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_small_networks_and_ngrams_learn_to_draft_from_a_teacher_of_transformers(
    kind, models, tmp_path
):
    """By KD and from its soft labels. Of an encoder-decoder they see what the decoder writes."""
    target, seq2seq = models[f"{kind} 1"], kind == "t5"
    dataset = pairs_dataset(tmp_path / "data", target) if seq2seq else str(words_dataset(tmp_path))
    how, source = dict(teacher=target, dataset=dataset, drafter="lstm"), SOURCE if seq2seq else 0
    x = data.blocks(data.load(dataset).val, source + 1, 40)
    found, judge = {}, loaded(target, source)[0]
    for name, kw in {
        "kd": dict(method="kd"),
        "kd teacher": dict(method="kd", kd_data="teacher", pseudo_tokens=4000),
        "kd student": dict(method="kd", kd_data="student"),
        "soft": dict(method="soft", topk=6, pseudo_tokens=4000, missing="tail"),
    }.items():
        first, last = distill(tmp_path, name, **how, **kw)
        assert last < first or name in (
            "kd teacher",
            "kd student",
        )  # validated on other text than they learn on
        found[name] = alpha(judge, loaded(str(tmp_path / name / "ckpt.pt"))[0], x, source + 1)
    D.main(types.SimpleNamespace(**{**vars(D.cfg), **how, "method": "kd", "drafter": "ngram", "pseudo_tokens": 4000,
                                    "out_dir": str(tmp_path / "ngram"), "device": "cpu"}))  # fmt: skip
    found["ngram"] = alpha(judge, NGram.load(tmp_path / "ngram" / "ngram.txt")[0], x, source + 1)
    untrained = alpha(judge, tiny_model(V=12, causal=True, block_size=48, seed=3), x, source + 1)
    print(found, untrained)
    assert all(a > untrained + 0.05 for a in found.values())


def test_pairs_in_a_tokenizer_of_transformers_keep_their_borders(models, tmp_path):
    """For an encoder-decoder as rows; for a decoder as a stream, whose batches begin with an article."""
    dice = random.Random(0)
    articles = [" ".join(dice.choices("abcdef", k=dice.randint(2, 9))) for _ in range(60)]
    pairs = [{"article": article, "highlights": "f e"} for article in articles]
    data.write_jsonl(tmp_path / "news.jsonl", pairs)
    small = [
        f"--input={tmp_path / 'news.jsonl'}",
        "--prompt_tokens=6",
        "--num_proc=1",
        "--val_fraction=0.5",
    ]
    out = {}
    for kind in ("t5", "llama"):
        out[kind] = tmp_path / kind
        how = [
            f"--tokenizer={models[f'{kind} 1']}",
            f"--out_dir={out[kind]}",
            "--summary_tokens=5",
            "--prefix=a ",
        ]
        run("data/cnn_dailymail/prepare.py", *how, *small, env={"HF_HOME": f"{tmp_path}/cache"})
    corpus = data.load(str(out["t5"]))
    encode, decode = data.encoder(corpus.meta)
    summary = [0, *encode("f e"), 1, 1]  # the decoder's start, the text, its end and the end again
    for row in data.batch(corpus.train, 50, 11, seeded(0)).tolist():
        assert row[6:] == summary and row[0] == encode("a")[0] and row.count(1) == 3
        assert any(
            article.startswith(decode(row[1:5])) for article in articles
        )  # decode writes no padding
    x, references = data.load_prompts(out["t5"] / "prompts.jsonl", corpus.meta, 9)
    assert (
        x.shape == (9, 7)
        and (x[:, 5:] == torch.tensor([1, 0])).all()
        and set(references) == {"f e"}
    )
    corpus = data.load(str(out["llama"]))
    assert (corpus.train[corpus.train.starts[1:] - 1] == 1).all() and len(corpus.train.starts) == 30
    rows = data.batch(corpus.train, 50, 5, seeded(0)).tolist()
    assert {tuple(row) for row in rows} <= {
        tuple(corpus.train[i : i + 5]) for i in corpus.train.starts
    }


@pytest.mark.parametrize("name", ["llama 1", "t5 1"])
def test_a_text_of_your_own_in_the_tokens_of_any_model(name, models, tmp_path):
    """What learns from it drafts for that model: the vocabularies are the same, by another name of the folder, too."""
    (tmp_path / "my.txt").write_text("a b c d e f " * 400)
    how = [f"--tokenizer={models[name]}", f"--out_dir={tmp_path}"]
    run("data/text/prepare.py", f"--input={tmp_path / 'my.txt'}", *how)
    corpus, meta = data.load(str(tmp_path)), load_model(models[name])[1]["meta"]
    assert data.same_vocabulary(corpus.meta, meta) and len(corpus.train) == 6 * 360
    assert data.same_vocabulary(corpus.meta, meta | {"tokenizer": "hf:elsewhere"})
    assert data.encoder(corpus.meta)[1](corpus.train[:6].tolist()) == "a b c d e f"
    assert data.encode_prompt(corpus.meta, "a b") == [WORDS.index("a"), WORDS.index("b")]


def test_a_small_t5_its_pairs_and_its_training_need_no_download(tmp_path):
    """The first commands of lesson 6's table: every pair's summary begins its article, and the target learns."""
    shape = [
        "--small=1,2,16",
        "--tiny=1,2,8",
        "--vocab_size=400",
        "--sentences=2",
        "--shortest=60",
        "--longest=70",
    ]
    run("lessons/small_t5.py", f"--out_dir={tmp_path}", *shape)
    pairs = data.read_jsonl(tmp_path / "pairs.jsonl")
    assert all(pair["article"].startswith(pair["highlights"]) for pair in pairs)
    assert len({pair["highlights"] for pair in pairs}) == len(pairs) > 1000
    small, tiny, dataset = (
        f"hf:{tmp_path / 'small'}",
        f"hf:{tmp_path / 'tiny'}",
        str(tmp_path / "data"),
    )
    how = [
        f"--tokenizer={small}",
        f"--input={tmp_path / 'pairs.jsonl'}",
        f"--out_dir={dataset}",
        "--num_proc=1",
    ]
    run("data/cnn_dailymail/prepare.py", *how, "--prompt_tokens=24", "--summary_tokens=20")
    corpus = data.load(dataset)
    row, decode = corpus.train[:44].tolist(), data.encoder(corpus.meta)[1]
    assert (
        row[23:25] == [1, 0]
        and decode(row[:24]).removeprefix("summarize: ")[:20] == decode(row[24:])[:20]
    )
    how = dict(
        method="kd", teacher=tiny, dataset=dataset, drafter=small, kd_weight=0.0, ce_weight=1.0
    )
    first, last = distill(
        tmp_path, "run", iters_per_round=20, export=str(tmp_path / "target"), **how
    )
    assert 1 < last < first < 7  # from log(400) = 6.0 on
    target, meta = loaded(f"hf:{tmp_path / 'target'}", 24)
    assert data.same_vocabulary(meta, corpus.meta) and meta["eot"] == 1
    x = data.load_prompts(tmp_path / "data" / "prompts.jsonl", meta, 8)[0]
    assert alpha(target, loaded(tiny, 24)[0], x, 25) > 0


def test_vocabularies_are_compared_by_what_ids_mean(models, tmp_path, refused):
    other = make(
        "llama", tmp_path / "other", 2, words=[*WORDS[:7], "f", "e", WORDS[9]]
    )  # as many tokens, in another order
    target, meta = loaded(models["llama 1"])
    cfg = types.SimpleNamespace(**{**vars(eval.cfg), "length": 20})
    assert "another vocabulary" in refused(load_drafter, other, target, meta, cfg)
    load_drafter(models["llama 2"], target, meta, cfg)  # another name, the same tokens
    decode = data.encoder(meta)[1]
    assert (
        meta["vocab_size"] == 12 > len(WORDS) and decode([3, 11, 4]) == "a b"
    )  # a row of the head that is no token


def words_dataset(folder):
    """A folder with a text in the words of the tokenizer above."""
    ids = torch.randint(3, 9, (2000,), generator=seeded(7)).numpy()
    make("llama", folder / "words", 1)
    data.write(
        str(folder / "data"), ids[:1500], ids[1500:], data.tokenizers.hf_meta(str(folder / "words"))
    )
    return folder / "data"
