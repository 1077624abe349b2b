"""
python -m pytest tests/test_extras_export_hf.py        a GPT of ours, loaded by transformers
"""

import json
import os
import types

import pytest
import torch
import transformers
from conftest import needs_gpt2, run, save_tiny, tiny_model
from test_extras_huggingface import WORDS, make

import data
from drafters import load_model
from extras import export_hf, huggingface
from plumbing.checkpoints import load_checkpoint, save_checkpoint
from speculative import generate

LETTERS = list("\nabcdefghi")
SHAPES = {
    "learned": {"pos": "learned"},
    "rope": {"pos": "rope"},
    "learned, as GPT-2": {
        "pos": "learned",
        "attn_bias": True,
        "mlp_bias": True,
        "ln_bias": True,
        "gelu_tanh": True,
    },
    "rope, untied, with biases": {
        "pos": "rope",
        "tie_weights": False,
        "attn_bias": True,
        "mlp_bias": True,
        "ln_bias": True,
    },
    "learned, untied": {"pos": "learned", "tie_weights": False},
}


def export(ckpt, out_dir):
    export_hf.main(types.SimpleNamespace(ckpt=str(ckpt), out_dir=str(out_dir)))


def random_vectors(path):
    """Norms and biases begin as ones and zeros, which would hide a mistake."""
    saved = load_checkpoint(path)
    for weight in saved["model"].values():
        if weight.dim() == 1:
            weight += torch.randn(len(weight)) / 3
    save_checkpoint(path, saved)


def with_meta(path, meta, **kw):
    """Writes the checkpoint of a tiny GPT of that vocabulary."""
    model = tiny_model(V=meta["vocab_size"], causal=True, **kw)
    saved = {
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "ema": None,
        "step": 1,
        "made_for": None,
        "config": {"dataset": "none"},
        "meta": meta,
    }
    save_checkpoint(path, saved)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_has_the_same_logits_and_writes_the_same_text(shape, tmp_path):
    save_tiny(tmp_path / "ckpt.pt", LETTERS, causal=True, n_head=4, **SHAPES[shape])
    random_vectors(tmp_path / "ckpt.pt")
    export(tmp_path / "ckpt.pt", tmp_path / "hf")
    ours = load_model(str(tmp_path / "ckpt.pt"))[0].double()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64)
    layout = "GPT2LMHeadModel" if shape.startswith("learned") else "GPTNeoXForCausalLM"
    assert type(theirs).__name__ == layout and not theirs.training

    x = torch.randint(10, (3, 16), generator=torch.Generator().manual_seed(1))
    close = {"atol": 1e-6, "rtol": 1e-6}  # both make the angles of rope in float32
    torch.testing.assert_close(theirs(x).logits, ours(x), **close)
    for prompt in (x[:1, :1], x[:2, :5]):
        n_new = 16 - prompt.size(1)
        found = theirs.generate(prompt, max_new_tokens=n_new, do_sample=False)
        expected = generate(ours, prompt, n_new, temperature=0)
        assert torch.equal(found, expected) and len(set(found[0].tolist())) > 1


@torch.no_grad()
def test_the_averaged_weights_are_what_is_exported(tmp_path):
    save_tiny(tmp_path / "ckpt.pt", LETTERS, causal=True)
    saved = load_checkpoint(tmp_path / "ckpt.pt")
    saved["ema"] = {name: 2 * weight for name, weight in saved["model"].items()}
    save_checkpoint(tmp_path / "ckpt.pt", saved)
    export(tmp_path / "ckpt.pt", tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    x = torch.arange(10)[None]
    torch.testing.assert_close(theirs(x).logits, load_model(str(tmp_path / "ckpt.pt"))[0](x))


def test_a_vocabulary_of_characters_is_a_list_beside_the_model(tmp_path):
    save_tiny(tmp_path / "ckpt.pt", LETTERS, causal=True)
    said, _ = run(
        "-m", "extras.export_hf", f"--ckpt={tmp_path}/ckpt.pt", f"--out_dir={tmp_path}/a/hf"
    )
    assert "GPT-NeoX, with no tokenizer, for transformers has none like it: itos.json" in said
    assert f"AutoModelForCausalLM.from_pretrained('{tmp_path}/a/hf')" in said
    assert json.loads((tmp_path / "a" / "hf" / "itos.json").read_text()) == LETTERS
    assert sorted(os.listdir(tmp_path / "a" / "hf")) == [
        "config.json",
        "itos.json",
        "model.safetensors",
    ]
    assert os.listdir(tmp_path / "a") == ["hf"]
    with_meta(tmp_path / "ids.pt", {"tokenizer": "ids", "vocab_size": 5})
    export(tmp_path / "ids.pt", tmp_path / "ids")
    assert sorted(os.listdir(tmp_path / "ids")) == ["config.json", "model.safetensors"]


@needs_gpt2
def test_gpt2s_byte_pairs_come_with_the_model(tmp_path, capsys):
    with_meta(tmp_path / "ckpt.pt", data.GPT2_META, pos="learned")
    export(tmp_path / "ckpt.pt", tmp_path / "hf")
    assert "GPT-2, with its tokenizer." in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    encode, decode = data.encoder(data.GPT2_META)
    for text in ("To be, or not to be", " caf\u00e9 \U0001f600\n\n  x = 1<|endoftext|>The"):
        assert tokenizer(text)["input_ids"] == encode(text)
        assert tokenizer.decode(encode(text)) == text == decode(encode(text))
    assert tokenizer.eos_token_id == 50256 and tokenizer.model_max_length == 16
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.generation_config.eos_token_id == 50256
    # it comes back, too
    model, checkpoint = load_model(f"hf:{tmp_path}/hf")
    assert checkpoint["meta"] == data.GPT2_META
    x = torch.tensor([encode("To be, or not to be")])
    torch.testing.assert_close(model(x), load_model(str(tmp_path / "ckpt.pt"))[0](x))


def test_a_tokenizer_of_transformers_comes_with_the_model(tmp_path, capsys):
    folder = make("llama", tmp_path / "llama", 1)[3:]
    with_meta(tmp_path / "ckpt.pt", data.hf_meta(folder))
    export(tmp_path / "ckpt.pt", tmp_path / "hf")
    assert "with its tokenizer." in capsys.readouterr().out
    text = {"tokenizer": "json", "vocab_size": len(WORDS), "eot": 1}
    text["json"] = (tmp_path / "hf" / "tokenizer.json").read_text()
    with_meta(tmp_path / "json.pt", text)
    export(tmp_path / "json.pt", tmp_path / "json")
    for name in ("hf", "json"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer("a b")["input_ids"] == [WORDS.index("a"), WORDS.index("b")]
        assert huggingface.about(f"hf:{tmp_path}/{name}")["meta"]["vocab_size"] == len(WORDS)


def test_a_tokenizer_with_a_bos_is_told_apart(tmp_path, capsys):
    from test_extras_bos import save_tokenizer

    make("llama", tmp_path / "llama", 1)
    save_tokenizer(tmp_path / "llama", "<s> $A")
    with_meta(tmp_path / "ckpt.pt", data.hf_meta(str(tmp_path / "llama")))
    export(tmp_path / "ckpt.pt", tmp_path / "hf")
    assert "add_special_tokens=False: it learned no BOS" in capsys.readouterr().out


def test_what_transformers_has_no_layout_for_ends_in_one_line(tmp_path, error_of):
    def said_of(**kw):
        save_tiny(tmp_path / "ckpt.pt", LETTERS, **kw)
        said = error_of(export, tmp_path / "ckpt.pt", tmp_path / "hf")
        assert not os.path.exists(tmp_path / "hf")
        return said

    assert "is a diffusion model" in said_of(causal=False)
    assert "is an LSTM" in said_of(causal=True, arch="lstm")
    assert "is a CNN" in said_of(causal=True, arch="cnn")
    assert "has a bias in its head" in said_of(causal=True, head_bias=True)
    folder = make("llama", tmp_path / "llama", 1)
    assert "is of transformers" in error_of(export, folder, tmp_path / "hf")
    assert "Name a new folder" in error_of(export, tmp_path / "ckpt.pt", "")
    assert "Name a new folder" in error_of(export, tmp_path / "ckpt.pt", tmp_path)
