"""
python -m pytest tests/test_extras_huggingface.py        decoders of transformers: as exact as ours
"""

import itertools
import json
import math
import shutil
import sys
import types

import pytest
import torch
import transformers
from conftest import run, tiny_model

import data
import distill
import drafters
import speculative
from drafters import Lookup, NGram, load_drafter, load_model
from extras import huggingface
from extras.published import save_model
from model import probabilities
from plumbing.randomness import seeded
from plumbing.runs import read_log
from speculative import Network, generate, speculate

WORDS = ["<pad>", "</s>", "<unk>", "a", "b", "c", "d", "e", "f", "TL;DR:"]


# --------------------------------------------------------------------------------------------------
# tiny models, and distributions by enumeration, also for test_extras_t5.py


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


CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen": "Qwen2",
    "gemma": "Gemma2",
    "cohere": "Cohere",
}


def make(kind, folder, seed, rows=12, words=WORDS, **kw):
    """
    Saves a tiny random model whose predictions are far from uniform, and its tokenizer ->
    hf:folder. rows: of the head, at least as many as there are words.
    """
    torch.manual_seed(seed)
    if kind == "t5":
        shape = dict(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        config = transformers.T5Config(
            vocab_size=rows, feed_forward_proj="gated-gelu", **shape, **kw
        )
        model = transformers.T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(rows, 16))  # untied, as FLAN-T5's
    else:
        shape = dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,  # grouped heads
            max_position_embeddings=48,
        )
        config_class = getattr(transformers, f"{CLASSES[kind]}Config")
        config = config_class(vocab_size=rows, **{**shape, **kw})
        model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(config)
        for p in model.parameters():
            if p.dim() == 2:
                p.data.mul_(15)
    model.save_pretrained(folder)
    tokenizer(words, kind == "t5").save_pretrained(folder)
    return f"hf:{folder}"


class Paths:
    """Runs f once for every sequence of random choices that it can make, instead of drawing."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(drafters, "draw", self.draw)
        monkeypatch.setattr(speculative, "draw", self.draw)
        monkeypatch.setattr(speculative, "uniform", self.uniform)

    def choose(self, weights):
        """Depth first: the choices of `plan`, then always the first possible one."""
        at = len(self.taken)
        possible = [i for i, w in enumerate(weights) if w > 0]
        i = self.plan[at] if at < len(self.plan) else 0
        self.taken.append((i, len(possible)))
        self.weight *= weights[possible[i]]
        return possible[i]

    def draw(self, p, generator=None):
        rows = p.reshape(-1, p.size(-1)).double()
        tokens = [self.choose((row / row.sum()).tolist()) for row in rows]
        return torch.tensor(tokens).view(p.shape[:-1])

    def uniform(self, shape, generator, device):
        return Uniform(self)

    def distribution(self, f):
        """-> {f(): probability}"""
        found = {}
        self.plan = []
        while True:
            self.taken = []
            self.weight = 1.0
            x = f()
            found[x] = found.get(x, 0.0) + self.weight
            while self.taken and self.taken[-1][0] + 1 == self.taken[-1][1]:
                self.taken.pop()
            if not self.taken:
                return found
            self.plan = [i for i, _ in self.taken]
            self.plan[-1] += 1


class Uniform:
    """The u of verify: u q >= p, a rejection, has probability 1 - p / q."""

    def __init__(self, paths):
        self.paths = paths

    def __mul__(self, q):
        self.q = q.tolist()
        return self

    def __ge__(self, p):
        self.p = p.tolist()
        return self

    def tolist(self):
        """Nobody asks for more after the first rejection."""
        for p, q in zip(self.p, self.q, strict=True):
            accepted = min(1.0, p / q)
            yield self.paths.choose([1 - accepted, accepted]) == 0


@torch.no_grad()
def exact_distribution(target, prompt, n_new):
    """-> {tokens: probability} of token by token sampling, every text one by one."""
    found = {}
    for new in itertools.product(range(target.config.vocab_size), repeat=n_new):
        x = torch.tensor([[*prompt, *new]])
        p = target.head(target.hidden(x))[0].double().softmax(-1)
        chosen = [p[len(prompt) - 1 + i, token].item() for i, token in enumerate(new)]
        found[tuple(x[0].tolist())] = math.prod(chosen)
    return found


def check_same(found, exact):
    """Two distributions over texts."""
    assert sum(found.values()) == pytest.approx(1)
    assert max(abs(found.get(x, 0) - exact.get(x, 0)) for x in found | exact) < 1e-5
    assert max(found.values()) < 0.9  # a choice is left


def ours(name, V=3):
    """A drafter of our own, for V tokens."""
    if name == "ngram":
        return NGram(3, V).fit(torch.randint(V, (200,), generator=seeded(4)).numpy())
    if name == "lookup":
        return Lookup(V)
    return Network(tiny_model(V=V, causal=True, seed=2, arch=name))


OURS = ["ngram", "lookup", "gpt", "lstm", "cnn"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """-> two Llamas, the second the drafter of the first, as hf:folder."""
    root = tmp_path_factory.mktemp("hf")
    return [make("llama", root / str(i), i) for i in (1, 2)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The same with three tokens, for enumeration."""
    root = tmp_path_factory.mktemp("hf3")
    return [make("llama", root / str(i), i, words=WORDS[:3]) for i in (1, 2)]


# --------------------------------------------------------------------------------------------------
# the model


@torch.no_grad()
def test_greedy_text_is_what_transformers_itself_generates(models):
    """Token for token, in float64, where no rounding decides."""
    model, _ = load_model(models[0])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models[0][3:], dtype=torch.float64)
    x = torch.randint(3, 9, (3, 5), generator=seeded(0))
    got = generate(model.double(), x, 12, temperature=0)
    want = theirs.generate(
        x,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=-1,
        suppress_tokens=[10, 11],  # rows that pad the head
        attention_mask=torch.ones_like(x),
    )
    assert torch.equal(got, want)
    assert len(got[:, -12:].unique()) > 2  # it writes something


@torch.no_grad()
def test_cached_states_are_those_without_a_cache_after_tokens_are_forgotten(models):
    model, _ = load_model(models[0])
    x = torch.randint(1, 9, (3, 20), generator=seeded(1))
    whole = model.double().hidden(x)
    cache = speculative.new_cache(model, 3)
    close = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(model.hidden(x[:, :9], cache), whole[:, :9], **close)
    cache.length = 7
    torch.testing.assert_close(model.hidden(x[:, 7:12], cache), whole[:, 7:12], **close)
    assert cache.length == 12
    cache.length = 0
    torch.testing.assert_close(model.hidden(x, cache), whole, **close)


@torch.no_grad()
def test_texts_past_the_context_slide_and_longer_rows_raise(models, error_of):
    model, _ = load_model(f"{models[0]}@8")
    assert model.config.block_size == 8
    x = torch.randint(3, 9, (2, 5), generator=seeded(0))
    text = generate(model, x, 20, temperature=0)
    assert torch.equal(text[:, -1], model(text[:, -5:-1])[:, -1].argmax(-1))
    assert "see hf:NAME@TOKENS" in error_of(model.hidden, text)


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("name", [*OURS, "llama"])
def test_speculation_keeps_a_decoders_distribution_by_enumeration(name, gamma, tiny, monkeypatch):
    target, _ = load_model(tiny[0])
    drafter = Network(load_model(tiny[1])[0]) if name == "llama" else ours(name)
    prompt = [0, 1, 1, 0, 1]
    x = torch.tensor(prompt)
    found = Paths(monkeypatch).distribution(
        lambda: tuple(speculate(target, drafter, x, 3, gamma=gamma).tolist())
    )
    check_same(found, exact_distribution(target, prompt, 3))


@pytest.mark.parametrize("rows", [3, 5])
def test_heads_of_one_family_may_have_other_numbers_of_padding_rows(rows, tmp_path, monkeypatch):
    paths = [
        make("llama", tmp_path / f"{seed}_{n}", seed, rows=n, words=WORDS[:3])
        for seed, n in ((1, 4), (3, rows))
    ]
    target, checkpoint = load_model(paths[0])
    drafter = load_drafter(paths[1], target, checkpoint["meta"])
    prompt = [0, 1, 1]
    x = torch.tensor(prompt)
    found = Paths(monkeypatch).distribution(
        lambda: tuple(speculate(target, drafter, x, 3, gamma=2).tolist())
    )
    check_same(found, exact_distribution(target, prompt, 3))


@torch.no_grad()
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_text_with_drafts_is_the_targets_own(gamma, models):
    target, drafter = (load_model(path)[0].double() for path in models)
    gpt = tiny_model(V=10, causal=True, block_size=32).double()
    for x in torch.randint(3, 9, (5, 4), generator=seeded(0)):
        want = generate(target, x[None], 20, temperature=0)[0]
        for made in (Network(drafter), Network(target), Lookup(10), Network(gpt)):
            assert torch.equal(speculate(target, made, x, 20, gamma=gamma, temperature=0), want)


def test_models_with_another_kind_of_cache_or_head_raise(tmp_path, error_of):
    path = make("mistral", tmp_path / "mistral", 1, sliding_window=4)
    assert f"{path} remembers by DynamicSlidingWindowLayer" in error_of(load_model, path)
    shape = dict(head_dim=8, layer_types=["full_attention"] * 2, final_logit_softcapping=1.0)
    path = make("gemma", tmp_path / "gemma", 1, **shape)
    assert f"{path} makes its logits in a way of its own" in error_of(load_model, path)
    path = make("t5", tmp_path / "t5", 1)
    assert "python -m extras.t5" in error_of(load_model, path)
    load_model(make("qwen", tmp_path / "qwen", 1))
    # what scales logits scales hidden states
    load_model(make("cohere", tmp_path / "cohere", 1, logit_scale=0.1))


def test_a_misspelled_attention_raises(models, error_of):
    assert "attention is 'eager'" in error_of(load_model, models[0], "cpu", "eager")


@torch.no_grad()
def test_a_frozen_model_in_bfloat16_predicts_what_autocast_does(models):
    """Mean total variation 0.006; a cache and a head of another kind still raise."""
    x = torch.randint(10, (4, 20), generator=seeded(0))
    p = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_model(models[0], dtype=dtype)
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        with torch.autocast("cpu", torch.bfloat16):
            p[dtype] = model(x).float().softmax(-1)
    variation = (p[torch.float32] - p[torch.bfloat16]).abs().sum(-1) / 2
    assert 0 < variation.mean() < 0.02 and variation.max() < 0.1


@torch.no_grad()
def test_a_model_loads_under_autocast_and_is_not_computed_in_float16(models):
    x = torch.randint(10, (4, 20), generator=seeded(0))
    exact = load_model(models[0])[0].hidden(x)
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", half):
            h = load_model(models[0])[0].hidden(x)
        error = float((h.float() - exact).abs().max() / exact.abs().max())
        assert 1e-4 < error < 0.05 if half == torch.bfloat16 else error == 0


def test_a_model_that_is_not_ours_to_run_raises_in_bfloat16_too(tmp_path, error_of):
    shape = dict(head_dim=8, layer_types=["full_attention"] * 2, final_logit_softcapping=1.0)
    path = make("gemma", tmp_path / "gemma", 1, **shape)
    said = error_of(load_model, path, dtype=torch.bfloat16)
    assert f"{path} makes its logits in a way of its own" in said


def test_a_drafter_has_the_number_format_of_its_target(models):
    for dtype in (torch.float32, torch.bfloat16):
        target, checkpoint = load_model(models[0], dtype=dtype)
        drafter = load_drafter(models[1], target, checkpoint["meta"])
        assert drafter.model.wte.weight.dtype == dtype
        speculate(target, drafter, torch.tensor([3, 4]), 6, generator=seeded(0))


def test_flash_attention_starts_after_a_check_without_it(models, error_of, monkeypatch):
    assert "pip install flash-attn" in error_of(load_model, models[0], attention="flash_attn")
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: True)
    said = error_of(load_model, models[0], attention="flash_attn")
    assert "flash_attn has no float32" in said and "--attention=sdpa" in said
    asked = []
    monkeypatch.setattr(
        transformers.PreTrainedModel,
        "set_attn_implementation",
        lambda self, name: asked.append(name),
    )
    load_model(models[0], attention="flash_attn", dtype=torch.bfloat16)
    assert asked == ["flash_attention_2"]


def test_a_checkpoint_that_lacks_a_weight_raises(models, error_of):
    model, about = load_model(models[0])
    saved = {**about, "model_config": vars(model.config), "model": model.state_dict(), "ema": None}
    again, _ = huggingface.from_checkpoint(saved)
    x = torch.arange(3, 8)[None]
    torch.testing.assert_close(again(x), model(x))
    saved["model"] = {k: v for k, v in saved["model"].items() if "layers.1.mlp.up" not in k}
    assert "another model's: inner.model.layers.1" in error_of(huggingface.from_checkpoint, saved)


@torch.no_grad()
def test_an_exported_decoder_has_the_name_that_loads_it(models, tmp_path, error_of):
    model, checkpoint = load_model(models[0])
    name = save_model(f"{tmp_path}/new/", model, checkpoint)
    assert name == f"hf:{tmp_path}/new"
    x = torch.arange(3, 8)[None]
    torch.testing.assert_close(load_model(name)[0](x), model(x))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "README.md").write_text("by hand")
    assert "Name a new folder" in error_of(save_model, f"{tmp_path}/there", model, checkpoint)
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["README.md"]


def test_a_missing_package_or_model_is_one_clear_line(models, error_of, monkeypatch, tmp_path):
    assert "cannot be loaded" in error_of(load_model, f"hf:{tmp_path / 'nothing'}")
    assert "Did you mean hf:?" in error_of(load_model, models[0][3:])
    checkpoint = {"meta": {"tokenizer": "char"}, "config": {"dataset": "x"}, "step": 0}
    save_model(tmp_path / "own", tiny_model(), checkpoint)
    assert "is read without hf:" in error_of(load_model, f"hf:{tmp_path / 'own'}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'transformers>=" in error_of(load_model, models[0])


def test_vocabularies_are_compared_by_what_ids_mean(models, tmp_path, error_of):
    swapped = [*WORDS[:7], "f", "e", WORDS[9]]  # as many tokens, in another order
    other = make("llama", tmp_path / "other", 2, words=swapped)
    target, checkpoint = load_model(models[0])
    meta = checkpoint["meta"]
    assert "another vocabulary" in error_of(load_drafter, other, target, meta)
    load_drafter(models[1], target, meta)  # another name, the same tokens
    decode = data.encoder(meta)[1]
    assert meta["vocab_size"] == len(WORDS) < 12  # rows of the head that are no tokens do not count
    assert decode([3, 4]) == "a b"


def add_tokens(path, *words, **special):
    """Gives the tokenizer of hf:folder more tokens, and its model no rows for them."""
    changed = transformers.AutoTokenizer.from_pretrained(path[3:])
    changed.add_tokens(list(words))
    changed.add_special_tokens(special)
    changed.chat_template = "{% for m in messages %}<chat> {{ m.content }}{% endfor %}"
    changed.save_pretrained(path[3:])
    return path


def test_a_token_without_a_row_is_said_at_load_and_raises_in_a_text(tmp_path, error_of, capsys):
    path = add_tokens(make("llama", tmp_path / "chat", 1, rows=10), "<chat>", "<tool>")
    model, checkpoint = load_model(path)
    meta = checkpoint["meta"]
    assert model.config.vocab_size == meta["vocab_size"] == 10
    said = capsys.readouterr().out
    assert "has an embedding of 10 tokens, but its tokenizer has more: '<chat>' (10)" in said
    assert said.count("\n") == 1  # though it is asked for several times
    encode, _ = data.encoder(meta)
    assert encode("a b") == data.encode_prompt(meta, "a b") == [3, 4]
    for ask in (encode, lambda text: data.encode_prompt(meta, text)):
        said = error_of(ask, "a <tool> b")
        assert "has '<tool>', token 11, which the model cannot write: it has 10 tokens" in said
    assert "'<chat>', token 10" in error_of(data.chat_prompt, meta, "a b")
    (tmp_path / "my.txt").write_text("a b c <chat> " * 40)
    how = [f"--tokenizer={path}", f"--out_dir={tmp_path}", f"--input={tmp_path / 'my.txt'}"]
    _, said = run("data/text/prepare.py", *how, ok=False)
    assert "'<chat>', token 10" in said and said.count("\n") == 1
    assert not (tmp_path / "train.bin").exists()


def test_an_added_token_that_has_a_row_is_one_like_any_other(tmp_path, capsys):
    path = add_tokens(make("llama", tmp_path / "chat", 1, rows=12), "<chat>")
    meta = load_model(path)[1]["meta"]
    assert meta["vocab_size"] == 11 and data.chat_prompt(meta, "a b") == [10, 3, 4]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("special", ["eos_token", "bos_token"])
def test_a_special_token_without_a_row_raises_at_load(special, tmp_path, error_of):
    path = add_tokens(make("llama", tmp_path / "chat", 1, rows=10), **{special: "<new>"})
    for ask in (load_model, lambda path: data.hf_meta(path[3:])):
        said = error_of(ask, path)
        assert "'<new>' (10). Texts begin or end with '<new>'" in said
        assert "resize_token_embeddings(11)" in said


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "t5"])
def test_a_model_without_its_tokenizer_raises(kind, tmp_path, error_of):
    """In place of some, transformers makes a tokenizer of special tokens alone."""
    folder = tmp_path / kind
    if kind == "gpt2":
        shape = dict(n_embd=16, n_layer=2, n_head=2)
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(folder)
    else:
        make(kind, folder, 1)
        for file in folder.glob("tokenizer*"):
            file.unlink()
    for ask in (huggingface.about, huggingface.config_of):
        assert "has no tokenizer (no tokenizer.json" in error_of(ask, f"hf:{folder}")


def test_ids_may_have_gaps(tmp_path):
    path = make("llama", tmp_path / "gaps", 1)
    changed = json.loads((tmp_path / "gaps" / "tokenizer.json").read_text())
    changed["model"]["vocab"]["f"] = 11
    (tmp_path / "gaps" / "tokenizer.json").write_text(json.dumps(changed))
    meta = load_model(path)[1]["meta"]
    encode, decode = data.encoder(meta)
    assert meta["vocab_size"] == 12 and encode("a f") == [3, 11] and decode([3, 11]) == "a f"


# --------------------------------------------------------------------------------------------------
# the commands


def words_dataset(folder):
    """A folder with a text in the words of the tokenizer above."""
    ids = torch.randint(3, 9, (2000,), generator=seeded(7)).numpy()
    make("llama", folder / "words", 1)
    meta = data.tokenizers.hf_meta(str(folder / "words"))
    data.write(str(folder / "data"), ids[:1500], ids[1500:], meta)
    return str(folder / "data")


def test_sample_and_eval_take_hf_as_target_drafter_and_evaluator(models, tmp_path):
    target, drafter = models
    drafts = [f"--draft={drafter}", "--gamma=2", "--length=20"]
    out, _ = run("sample.py", f"--ckpt={target}", "--prompt=a b c a b", *drafts)
    assert "sample 4" in out and "a b c a b" in out
    small = ["--num_samples=8", "--length=32", "--latency_batch=1", "--device=cpu"]
    what = [
        f"--out={tmp_path / 'eval'}",
        "--what=genppl,latency,acceptance",
        f"--dataset={words_dataset(tmp_path)}",
        f"--draft={drafter},lookup",
    ]
    run("eval.py", f"--ckpt={target}", f"--evaluator={drafter}", *what, *small)
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert report["rows"][0]["genppl"] > 1 and report["latency"][0]["s_per_sample"] > 0
    assert {row["drafter"] for row in report["drafters"]} == {drafter, "lookup"}


SMALL = dict(
    method="kd",
    device="cpu",
    batch_size=16,
    gradient_accumulation_steps=1,
    eval_interval=5,
    eval_iters=2,
    ema=0.9,
    iters_per_round=60,
    learning_rate=1e-2,
    warmup_iters=2,
    n_embd=16,
    divergence="kl_fwd",
    seed=1,
)


def run_distill(tmp_path, name, **kw):
    """Runs distill.py's main -> the first and the last validation loss."""
    out_dir = str(tmp_path / name)
    knobs = {**vars(distill.cfg), **SMALL, "out_dir": out_dir, **kw}
    distill.main(types.SimpleNamespace(**knobs))
    losses = [line["val_loss"] for line in read_log(out_dir) if "val_loss" in line]
    return losses[0], losses[-1]


@torch.no_grad()
def alpha(target, drafter, x):
    """(n, T) int64 -> the mean of sum min(p, q) on the target's continuations of x."""
    text = generate(target, x, 8, generator=seeded(5))
    total = 0.0
    for row in text:
        p = probabilities(target(row[None])[0])
        for i in range(x.size(1), len(row)):
            _, q = drafter.propose(row[:i], 1, {}, seeded(6))
            total += torch.minimum(p[i - 1], q[0]).sum().item()
    return total / (len(text) * 8)


def test_a_distilled_decoder_drafts_better_and_its_folder_loads_again(models, tmp_path):
    dataset = words_dataset(tmp_path)
    how = dict(teacher=models[0], dataset=dataset, drafter=models[1])
    first, last = run_distill(tmp_path, "kd", **how)
    assert last < 0.8 * first
    ckpt = tmp_path / "kd" / "ckpt.pt"
    run("-m", "extras.huggingface", f"--ckpt={ckpt}", f"--out={tmp_path / 'hf'}")
    target, _ = load_model(models[0])
    x = data.blocks(data.load(dataset).val, 6, 12)
    paths = (models[1], str(ckpt), f"hf:{tmp_path / 'hf'}")
    before, after, again = (alpha(target, Network(load_model(p)[0]), x) for p in paths)
    assert after > before + 0.1 and again == pytest.approx(after)
    run_distill(tmp_path, "kd", **how, init_from="resume", iters_per_round=62)


def test_only_a_trained_model_of_transformers_becomes_a_folder(error_of, tmp_path):
    from conftest import save_tiny

    save_tiny(tmp_path / "ckpt.pt", ["a", "b"], causal=True)
    knobs = dict(ckpt=str(tmp_path / "ckpt.pt"), out=str(tmp_path / "hf"))
    assert "no model of transformers" in error_of(huggingface.main, types.SimpleNamespace(**knobs))
    there = types.SimpleNamespace(ckpt="none.pt", out=str(tmp_path))  # seen before ckpt is read
    assert "Name a new folder" in error_of(huggingface.main, there)


def test_small_networks_and_ngrams_learn_to_draft_for_a_decoder(models, tmp_path):
    dataset = words_dataset(tmp_path)
    how = dict(teacher=models[0], dataset=dataset, drafter="lstm")
    target, _ = load_model(models[0])
    x = data.blocks(data.load(dataset).val, 6, 12)
    found = {}
    for kd_data in ("dataset", "teacher", "student"):
        kw = dict(kd_data=kd_data, pseudo_tokens=4000)
        first, last = run_distill(tmp_path, kd_data, **how, **kw)
        assert last < first or kd_data != "dataset"  # validated on other text than they learn on
        drafter = Network(load_model(str(tmp_path / kd_data / "ckpt.pt"))[0])
        found[kd_data] = alpha(target, drafter, x)
    knobs = {**vars(distill.cfg), **SMALL, **how, "drafter": "ngram", "pseudo_tokens": 20_000}
    knobs |= {"out_dir": str(tmp_path / "ngram"), "ngram_n": 3}
    distill.main(types.SimpleNamespace(**knobs))
    found["ngram"] = alpha(target, NGram.load(tmp_path / "ngram" / "ngram.txt")[0], x)
    untrained = alpha(target, Network(tiny_model(V=10, causal=True, block_size=48, seed=3)), x)
    assert all(a > untrained + 0.05 for a in found.values()), (found, untrained)


def test_a_text_of_your_own_in_the_tokens_of_any_model(models, tmp_path):
    """What learns from it drafts for that model, also if the folder has another name."""
    (tmp_path / "my.txt").write_text("a b c d e f " * 400)
    how = [f"--tokenizer={models[0]}", f"--out_dir={tmp_path}"]
    run("data/text/prepare.py", f"--input={tmp_path / 'my.txt'}", *how)
    corpus = data.load(str(tmp_path))
    meta = load_model(models[0])[1]["meta"]
    assert data.same_vocabulary(corpus.meta, meta) and len(corpus.train) == 6 * 360
    assert data.same_vocabulary(corpus.meta, meta | {"tokenizer": "hf:elsewhere"})
    assert data.encoder(corpus.meta)[1](corpus.train[:6].tolist()) == "a b c d e f"
    assert data.encode_prompt(corpus.meta, "a b") == [WORDS.index("a"), WORDS.index("b")]


def test_a_chat_is_the_prompt_in_the_template_of_the_tokenizer(models, tmp_path, error_of):
    folder = tmp_path / "chat"
    shutil.copytree(models[0][3:], folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    meta = huggingface.about(models[0])["meta"]
    assert "no chat template" in error_of(data.chat_prompt, meta, "a b")
    assert "leave --chat out" in error_of(data.chat_prompt, data.GPT2_META, "a b")
    tokenizer.chat_template = (
        "{% for m in messages %}e {{ m.content }} f {% endfor %}"
        "{% if add_generation_prompt %}c{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    meta = huggingface.about(f"hf:{folder}")["meta"]
    expected = [WORDS.index(word) for word in "eabfc"]
    assert data.chat_prompt(meta, "a b") == expected
    chat = ["--chat=True", "--num_samples=1", "--length=12"]
    said, _ = run("sample.py", f"--ckpt=hf:{folder}", "--prompt=a b", *chat)
    assert said.split("sample 1\n")[1].replace(" ", "").startswith("eabfc")
    _, said = run("sample.py", f"--ckpt=hf:{folder}", *chat, ok=False)
    assert "give a --prompt" in said


def test_the_table_of_ten_prompts_runs_beside_transformers(tmp_path):
    size = {"rows": len(WORDS), "max_position_embeddings": 512}
    path = make("llama", tmp_path / "chat", 1, **size)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path[3:])
    tokenizer.chat_template = "{% for m in messages %}a {{ m.content }} b{% endfor %}"
    tokenizer.save_pretrained(path[3:])
    few = ["--n_prompts=3", "--n_new=8", "--gamma=2", "--seeds=2"]
    said, _ = run("lessons/real_target.py", f"--ckpt={path}", f"--draft=lookup,{path}", *few)
    assert "6 of 6 answers are the same by every method" in said
    header = next(line for line in said.splitlines() if line.startswith("prompt "))
    assert header.split()[3:5] == ["lookup", path]
    assert "(2.67)" in said  # the target as its own drafter: 8 tokens in 3 rounds
