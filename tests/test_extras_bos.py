"""
python -m pytest tests/test_extras_bos.py        a tokenizer that puts a BOS before a text
"""

import types

import numpy as np
import pytest
import torch
import transformers
from conftest import TINY, tiny_model
from test_extras_huggingface import Paths, check_same, exact_distribution, make

import data
import distill
import metrics
import sample
import speculative
from data.texts import files_of, write_texts
from data.tokenizers import opening_of
from drafters import NGram, load_model
from extras import convert_hf, huggingface, retokenize
from extras.published import save_model
from plumbing.randomness import seeded
from speculative import Network, generate, speculate

WORDS = ["<pad>", "</s>", "<unk>", "<s>", "a", "b", "c", "d"]
EOT, BOS, A = 1, 3, 4
CHAT = "<s>{% for m in messages %} {{ m.content }}{% endfor %}"


def save_tokenizer(folder, template, bos="<s>"):
    """Of whole words; template: what it makes of the text $A. None: nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {w: i for i, w in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        special = [(w, ids[w]) for w in template.split() if w != "$A"]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": bos}
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    saved.chat_template = CHAT
    saved.save_pretrained(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """-> hf:folder of a tiny Llama whose tokenizer begins every text with <s>."""
    folder = tmp_path_factory.mktemp("hf") / "bos"
    make("llama", folder, 1, rows=len(WORDS), words=WORDS)
    save_tokenizer(folder, "<s> $A")
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def text(path, tmp_path_factory):
    """-> the folder of a dataset in that vocabulary, of twelve texts."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(12):
        (folder / f"{i:02}.txt").write_text("b a c d " * 20)
    out = str(folder / "out")
    meta = huggingface.about(path)["meta"]
    write_texts(out, files_of(str(folder / "*.txt")), "texts", path, meta=meta)
    return out


def reads(model):
    """-> a list that gets what the model of transformers is given, each beginning of texts."""
    found = []

    def look(module, args, kwargs):
        cache = kwargs.get("cache")
        if cache is None or cache.get_seq_length() == 0:
            found.append(kwargs["input_ids"])

    model.inner.register_forward_pre_hook(look, with_kwargs=True)
    return found


def begin_with_one_bos(found):
    """A model may draw more of them further on."""
    begun = all((x[:, 0] == BOS).all() for x in found)
    return bool(found) and begun and BOS not in found[0][:, 1:2]


def test_what_a_tokenizer_puts_before_a_text_is_found(tmp_path):
    def opening(name, *args):
        save_tokenizer(tmp_path / name, *args)
        return opening_of(str(tmp_path / name))

    assert opening("bos", "<s> $A") == ([BOS], [BOS])
    assert opening("both", "<s> $A </s>") == ([BOS], [BOS])
    assert opening("two", "<pad> <s> $A") == ([0, BOS], [0, BOS])
    assert opening("as its end", "</s> $A", "</s>") == ([EOT], [EOT])
    assert opening("end", "$A </s>") == ([], [BOS])  # there is one for where no text is
    assert opening("none", None, None) == ([], [EOT])


def test_a_dataset_has_an_end_of_text_after_each_text_and_no_bos(text):
    corpus = data.load(text)
    assert corpus.train[:4].tolist() == [A + 1, A, A + 2, A + 3]
    assert (corpus.train == EOT).sum() == 11 and (corpus.val == EOT).sum() == 1
    assert BOS not in corpus.train and BOS not in corpus.val
    # so a GPT of ours, which learns from it, starts from an end and is given no BOS either
    assert data.start_token(corpus.meta) == EOT
    assert data.encode_prompt(corpus.meta, "a b") == [A, A + 1]


def test_training_likelihood_samples_and_evaluation_begin_with_one_bos(path, text):
    model, checkpoint = huggingface.load_model(path)
    meta = checkpoint["meta"]
    corpus = data.load(text)
    x = data.blocks(corpus.val, 9, 4)
    found = reads(model)

    def of(f, *args, **kw):
        found.clear()
        f(*args, **kw)
        return begin_with_one_bos(found)

    student = tiny_model(V=len(WORDS), causal=True)
    assert of(distill.kd_loss, student, x, None, model)  # as a teacher
    assert of(distill.kd_loss, model, x, None, student)  # as what is trained
    options = {"draws": 1, "seed": 0, "batch_size": 2}
    assert of(metrics.likelihood, model, x, **options)
    scored = metrics.scored_positions(x)
    assert of(metrics.evaluator_nats, model, x, scored, 2)
    about = {"tokenizer": "char", "vocab_size": 2, "itos": ["a ", "b "]}
    written = torch.randint(2, (3, 9), generator=seeded(1))
    assert of(retokenize.measure, written, 0, about, model, meta, 2)

    # longer than the context, in windows
    longer = speculative.empty_templates(model, meta, 2, 60)
    assert longer[0, 0] == EOT
    assert of(speculative.draw_samples, model, longer, generator=seeded(1))
    assert len(found) > 1
    prompt = torch.tensor([data.encode_prompt(meta, "a b")])
    assert of(generate, model, prompt, 4, generator=seeded(1))
    drafter = NGram(2, len(WORDS)).fit(corpus.train)
    assert of(speculate, model, drafter, prompt[0], 4, generator=seeded(1))
    chat = data.chat_prompt(meta, "a b")
    assert chat == [BOS, A, A + 1]
    assert of(generate, model, torch.tensor([chat]), 4, generator=seeded(1))


@torch.no_grad()
def test_a_text_has_the_logits_that_transformers_gives_it(path):
    model, checkpoint = huggingface.load_model(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path[3:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(path[3:])
    x = tokenizer("a b c", return_tensors="pt")["input_ids"]
    expected = theirs(x).logits
    assert x[0, 0] == BOS
    for ids in ([A, A + 1, A + 2], [EOT, A, A + 1, A + 2], x[0].tolist()):
        logits = model(torch.tensor([ids]))
        torch.testing.assert_close(logits, expected[:, -len(ids) :], atol=1e-4, rtol=1e-4)
    greedy = theirs.generate(x, max_new_tokens=8, do_sample=False, eos_token_id=99)[0, 1:]
    prompt = torch.tensor([data.encode_prompt(checkpoint["meta"], "a b c")])
    assert generate(model, prompt, 8, temperature=0)[0].tolist() == greedy.tolist()


def test_drafts_leave_the_distribution_as_it_is(tmp_path, monkeypatch):
    """With the BOS in the cache of the target, and in that of a drafter of the same kind."""
    target, drafter = [small_decoder(tmp_path / str(i), i) for i in (1, 2)]
    for prompt in ((0,), (EOT,)):
        exact = exact_distribution(target, prompt, 3)
        paths = Paths(monkeypatch)
        for propose in (Network(drafter), NGram(2, 4).fit(np.arange(99) % 4)):
            x = torch.tensor(prompt)
            found = paths.distribution(
                lambda x=x, q=propose: tuple(speculate(target, q, x, 3, gamma=2).tolist())
            )
            check_same(found, exact)


def small_decoder(folder, seed):
    """Four tokens with a BOS, for enumeration."""
    make("llama", folder, seed, rows=4, words=WORDS[:4])
    save_tokenizer(folder, "<s> $A")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(WORDS)  # of which the model has four
    return huggingface.load_model(f"hf:{folder}")[0]


def test_the_longest_text_leaves_room_for_the_bos(path, error_of):
    assert huggingface.config_of(f"{path}@16").block_size == 16
    model, _ = huggingface.load_model(path)  # of 48 positions
    assert model.config.block_size == 47
    assert model(torch.full((1, 47), A)).shape == (1, 47, len(WORDS))
    assert "48 tokens are more" in error_of(model, torch.full((1, 48), A))


def test_a_decoder_that_fills_in_masks_reads_one_bos_before_the_text(path, text):
    model = convert_hf.DiffusionDecoder(f"{path}@16")
    assert model.alone == [BOS] and model.config.block_size == 15
    found = reads(model)
    knobs = {**vars(sample.cfg), "prompt": "a b", "length": 12}
    template = sample.make_template(model, data.load(text).meta, types.SimpleNamespace(**knobs))
    assert template[:3].tolist() == [A, A + 1, -1]
    speculative.draw_samples(model, template[None], 4, generator=seeded(1))
    assert begin_with_one_bos(found)


def test_what_was_trained_here_starts_from_what_it_was_trained_on(path, text, tmp_path):
    """A decoder that is trained here goes back to transformers, where its tokenizer begins so."""
    knobs = {**vars(distill.cfg), **TINY, "method": "kd", "divergence": "kl_fwd"}
    knobs |= {"teacher": f"{path}@16", "drafter": f"{path}@16", "dataset": text}
    knobs |= {"out_dir": str(tmp_path / "kd"), "iters_per_round": 2, "eval_interval": 2}
    knobs |= {"kd_data": "teacher", "pseudo_tokens": 64, "gradient_accumulation_steps": 1}
    distill.main(types.SimpleNamespace(**knobs))
    pseudo = np.fromfile(tmp_path / "kd" / "pseudo.bin", np.uint16).reshape(-1, 16)
    assert (pseudo[:, 0] == EOT).all()
    model, checkpoint = load_model(str(tmp_path / "kd" / "ckpt.pt"))
    found = reads(model)
    start = speculative.empty_templates(model, checkpoint["meta"], 1, 8)
    speculative.draw_samples(model, start, generator=seeded(1))
    assert begin_with_one_bos(found)
    folder = str(tmp_path / "hf")
    assert save_model(folder, model, checkpoint) == f"hf:{folder}"
    assert opening_of(folder)[0] == [BOS]
