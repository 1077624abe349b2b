"""
python -m pytest tests/test_extras_published.py          files of GPT-2, MDLM, SDTT, and our own
"""

import json
import sys

import numpy as np
import pytest
import reference
import safetensors.torch
import torch
from conftest import run, tiny_model

import data
from drafters import load_model
from extras import published
from extras.published import hub_address, save_model
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded

V, C, L, E = 50257, 16, 2, 8
MDLM = {"n_heads": 2, "hidden_dim": C, "model_length": 32, "time_conditioning": False}
GPT2 = {
    "n_head": 2,
    "n_layer": L,
    "n_embd": C,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}


def folder_of(path, config, w):
    """Writes what a hub gives -> the folder."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in w.items()}, path / "model.safetensors"
    )
    return str(path)


@pytest.fixture(scope="module")
def mdlm():
    return reference.random_mdlm(V, C, L, E, seeded(0))


@pytest.fixture(scope="module")
def gpt2():
    return reference.random_gpt2(V, C, L, 32, seeded(1))


@pytest.fixture(scope="module")
def mdlm_folder(mdlm, tmp_path_factory):
    w = {f"backbone.{k}": v for k, v in mdlm.items()}
    w["backbone.rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, C // 2, 2) / (C // 2))
    return folder_of(tmp_path_factory.mktemp("published") / "mdlm", MDLM, w)


@pytest.fixture(scope="module")
def gpt2_folder(gpt2, tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("published") / "gpt2", GPT2, gpt2)


def test_the_folded_model_is_the_adaptive_one(mdlm, mdlm_folder):
    model = load_model(mdlm_folder)[0]
    xt = torch.randint(0, V + 1, (3, 32), generator=seeded(2))
    xt[:, ::3] = V  # [MASK]
    literal = reference.mdlm_forward(mdlm, 2, xt)[..., :V]
    assert literal.std() > 0.5 and not model.config.causal and model.mask_id == V
    assert (model(xt) - literal).abs().max() < 1e-4


def test_the_fold_is_for_noise_level_zero_only(mdlm, mdlm_folder):
    """The twin is no tautology: with another level it says something else."""
    xt = torch.randint(0, V + 1, (1, 32), generator=seeded(2))
    other = reference.mdlm_forward(mdlm, 2, xt, sigma=1.0)[..., :V]
    assert (load_model(mdlm_folder)[0](xt) - other).abs().max() > 0.1


def test_gpt2_is_the_published_one(gpt2, gpt2_folder):
    model = load_model(gpt2_folder)[0]
    x = torch.randint(0, V, (3, 32), generator=seeded(3))
    literal = reference.gpt2_forward(gpt2, 2, x)
    assert literal.std() > 0.5 and model.config.causal and model.lm_head is None
    assert (model(x) - literal).abs().max() < 1e-4


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.backbone."])
def test_any_number_of_prefixes_and_nested_settings_as_in_the_sdtt_files(
    prefix, mdlm, mdlm_folder, tmp_path
):
    config = {
        "config": {"model": {"n_heads": 2, "length": 32}, "time_conditioning": False},
        "verbose": True,
    }
    folder = folder_of(tmp_path / "sdtt", config, {prefix + k: v for k, v in mdlm.items()})
    same, model = load_model(mdlm_folder)[0], load_model(folder)[0]
    assert model.config == same.config and model.config.block_size == 32
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), same.parameters(), strict=True)
    )


def test_names_become_repositories_and_revisions():
    for name, address in {
        "gpt2": ["openai-community/gpt2", "main"],
        "gpt2-xl": ["openai-community/gpt2-xl", "main"],
        "mdlm-owt": ["kuleshov-group/mdlm-owt", "main"],
        "sdtt:kld:7": ["jdeschena/sdtt", "baselines_kld_step_70000"],
        "sdtt:scaling:md:3": ["jdeschena/sdtt", "scaling_400k_md_step_30000"],
        "sdtt:teacher:large": ["jdeschena/sdtt", "teacher_400k_large_step_400000"],
        "sdtt:teacher:1M": ["jdeschena/sdtt", "teacher_1M_sm"],
        "hub:me/mine@v2": ["me/mine", "v2"],
        "hub:me/mine": ["me/mine", "main"],
    }.items():
        assert hub_address(name) == address
    for name in (
        "gpt3",
        "gpt2-xxl",
        "sdtt:kld:8",
        "sdtt:kl:1",
        "mdlm",
        "out/pydoc/ckpt.pt",
        "xgpt2",
    ):
        assert hub_address(name) is None


def test_the_hub_is_asked_for_three_files_of_the_revision(gpt2_folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **kw: asked.append((a, kw)) or gpt2_folder
    )
    assert load_model("gpt2-large")[0].config.n_embd == C
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    assert asked == [
        (("openai-community/gpt2-large",), {"revision": "main", "allow_patterns": files})
    ]


def test_no_network_is_one_line():
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    _, said = run("sample.py", "--ckpt=gpt2", "--device=cpu", ok=False, env=env)
    assert said.count("\n") == 1 and "openai-community/gpt2" in said and "folder" in said


def spoil(w, config, what):
    """One thing wrong -> the words that the message must have."""
    if what == "missing":
        del w["blocks.1.mlp.2.bias"]
        return ["blocks.1.mlp.2.bias", "missing"]
    if what == "unexpected":
        w["blocks.0.extra"] = torch.ones(2)
        return ["blocks.0.extra", "(2,)"]
    if what == "misshapen":
        w["blocks.0.norm1.weight"] = torch.ones(1)  # would be broadcast
        return ["blocks.0.norm1.weight", "(1,)", "(16,)"]
    if what == "time":
        config["model"] = {"time_conditioning": True}
        return ["time_conditioning", "True"]
    if what == "rotary":
        w["rotary_emb.inv_freq"] = 500.0 ** (-torch.arange(0, C // 2, 2) / (C // 2))
        return ["inv_freq", "10000"]
    if what == "heads":
        config["other"] = {"n_heads": 4}
        return ["n_heads is [2, 4]"]
    if what == "odd heads":
        w["rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, 6, 2) / 6)
        return ["heads of 6 channels", "16"]
    if what == "no number":
        w["blocks.x.y"] = torch.ones(2)
        return ["'x'"]
    if what == "no heads":
        config["n_heads"] = 0
        return ["zero"]
    if what == "unknown layout":
        w.pop("vocab_embed.embedding")
        return ["no layout"]


KINDS = [
    "missing",
    "unexpected",
    "misshapen",
    "time",
    "rotary",
    "heads",
    "odd heads",
    "no number",
    "no heads",
    "unknown layout",
]


@pytest.mark.parametrize("what", KINDS)
def test_a_mdlm_folder_with_one_thing_wrong_raises(what, mdlm, tmp_path, error_of):
    w, config = dict(mdlm), dict(MDLM)
    words = spoil(w, config, what)
    said = error_of(load_model, folder_of(tmp_path / "odd", config, w))
    assert all(word in said for word in words), said


def test_a_gpt2_folder_with_one_thing_wrong_raises(gpt2, tmp_path, error_of):
    for i, (more, without, changed, words) in enumerate(
        [
            ({"h.0.attn.rotary": torch.ones(2)}, None, {}, ["blocks.0.attn.rotary"]),
            ({}, "h.1.ln_1.bias", {}, ["blocks.1.ln_1.bias", "nothing"]),
            ({"h.1.mlp.c_fc.bias": torch.ones(3)}, None, {}, ["mlp.up.bias", "(3,)"]),
            ({}, None, {"activation_function": "relu"}, ["activation_function", "relu"]),
            ({}, None, {"layer_norm_epsilon": 1e-6}, ["layer_norm_epsilon"]),
            ({"lm_head.weight": torch.ones(V, C)}, None, {}, ["lm_head"]),
        ]
    ):
        w = {k: v for k, v in (gpt2 | more).items() if k != without}
        said = error_of(load_model, folder_of(tmp_path / str(i), {**GPT2, **changed}, w))
        assert all(word in said for word in words), said


def test_files_that_are_cut_off_or_missing_raise(gpt2_folder, gpt2, tmp_path, error_of):
    folder = folder_of(tmp_path / "cut", GPT2, gpt2)
    content = open(f"{folder}/model.safetensors", "rb").read()
    (tmp_path / "cut" / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cut" in error_of(load_model, folder)
    unknown = {
        "model_config": {"n_layer": 2, "wings": 2, "vocab_size": 5},
        "meta": {"vocab_size": 5},
        "dataset": "x",
    }
    for name, text in {"list": "[]", "unknown": json.dumps(unknown)}.items():
        odd = folder_of(tmp_path / name, GPT2, gpt2)
        (tmp_path / name / "config.json").write_text(text)
        assert "can be read" in error_of(load_model, odd)
    (tmp_path / "cut" / "config.json").write_text('{"n_head": ')
    assert "config.json" in error_of(load_model, folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "ckpt.pt").write_bytes(b"")
    assert "ckpt.pt" in error_of(load_model, str(tmp_path / "empty"))
    assert "gpt2-xl" in error_of(load_model, "gpt2-xxl")


def test_a_model_is_exported_and_comes_back_the_same(mdlm_folder, tmp_path, error_of):
    model, checkpoint = load_model(mdlm_folder)
    assert checkpoint.keys().isdisjoint({"model", "ema", "optimizer"})  # weights are held once
    save_model(str(tmp_path / "mine"), model, checkpoint)
    again, about = load_model(str(tmp_path / "mine"))
    assert again.config == model.config and about["meta"] == checkpoint["meta"] == data.GPT2_META
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert "another folder" in error_of(save_model, str(tmp_path / "mine"), model, checkpoint)


def test_a_class_publishes_its_own(markov, tmp_path):
    """Trains, exports and samples; the folder then serves as a checkpoint in every script."""
    cpu = ["--device=cpu", "--eval_iters=1", f"--dataset={markov}"]
    tiny = ["--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"]
    tiny += [*cpu, "--max_iters=4", "--eval_interval=4", "--ema=0.9"]
    run("train.py", *tiny, f"--out_dir={tmp_path}/run")
    ckpt = f"--ckpt={tmp_path}/run/ckpt.pt"
    export = ["-m", "extras.published", ckpt, f"--out={tmp_path}/mine"]
    said, _ = run(*export)
    assert f"--ckpt={tmp_path}/mine" in said
    few = ["--num_samples=2", "--steps=4", "--device=cpu"]
    out, _ = run("sample.py", ckpt, *few)
    again, _ = run("sample.py", f"--ckpt={tmp_path}/mine", *few)
    assert again.split("sample 1")[1].split(" in ")[0] == out.split("sample 1")[1].split(" in ")[0]
    _, said = run(*export, ok=False)
    assert "holds a model or a config.json already" in said and said.count("\n") == 1
    _, said = run("-m", "extras.published", ckpt, ok=False)
    assert "--out=FOLDER" in said

    rounds = ["--rounds=1", "--iters_per_round=2", "--eval_interval=2", "--batch_size=2"]
    rounds += ["--gradient_accumulation_steps=1", f"--teacher={tmp_path}/mine", *cpu]
    run("distill.py", *rounds, f"--out_dir={tmp_path}/sdtt")
    student = f"{tmp_path}/sdtt/round_1.pt"
    run("-m", "extras.published", f"--ckpt={student}", f"--out={tmp_path}/student")
    weights = load_model(f"{tmp_path}/student")[0].state_dict()
    for key, value in load_model(student)[0].state_dict().items():
        assert torch.equal(value, weights[key])
    run("train.py", *tiny, f"--init_from={tmp_path}/student", f"--out_dir={tmp_path}/more")
    nelbo = ["--what=nelbo", "--eval_blocks=4", "--device=cpu", f"--out={tmp_path}/e"]
    run("eval.py", f"--ckpt={tmp_path}/student", *nelbo)


def test_gpt2_becomes_a_diffusion_model_with_a_shorter_context(gpt2_folder, tmp_path):
    folder = tmp_path / "words"
    data.write(str(folder), np.arange(400) % V, np.arange(400) % V, data.GPT2_META)
    args = [
        f"--dataset={folder}",
        "--block_size=16",
        "--batch_size=2",
        "--max_iters=2",
        "--eval_iters=1",
    ]
    args += ["--device=cpu", f"--out_dir={tmp_path}/run", "--dtype=float32"]
    run("train.py", *args, f"--init_from={gpt2_folder}")
    saved = load_checkpoint(f"{tmp_path}/run/ckpt.pt")["model_config"]
    assert (saved["causal"], saved["block_size"], saved["pos"]) == (False, 16, "learned")


# --------------------------------------------------------------------------------------------------
# any vocabulary: V + 1 rows, the last of which is [MASK]

WORDS = [*"abcdefghi", "##b", " "]  # 11 of them


def tokenizer_json(tokens=WORDS, **added):
    """What the package `tokenizers` saves: each character is a token, what is none is the first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.Split("", "isolated"),
        decoders.Fuse(),
    )
    tokenizer.add_special_tokens([AddedToken(token) for token in added.get("special", [])])
    return tokenizer.to_str()


def small_folder(path, tokenizer=None, V=11, **config):
    """An MDLM folder of V tokens -> its name."""
    folder = folder_of(path, MDLM | config, reference.random_mdlm(V, C, L, E, seeded(0)))
    if tokenizer:
        (path / "tokenizer.json").write_text(tokenizer)
    return folder


def sampled(ckpt, prompt):
    """sample.py's one text, and what it says before."""
    said, _ = run(
        "sample.py",
        f"--ckpt={ckpt}",
        "--device=cpu",
        "--num_samples=1",
        "--steps=4",
        f"--prompt={prompt}",
    )
    told, sample = said.split("-" * 40 + " sample 1\n")
    return sample.split("\n" + "-" * 40)[0], told


def test_a_model_of_any_vocabulary_trains_distills_samples_and_is_exported(tmp_path):
    folder = small_folder(tmp_path / "eleven", tokenizer_json())
    model = load_model(folder)[0]
    assert (model.config.vocab_size, model.mask_id, model.wte.num_embeddings) == (11, 11, 12)
    xt = torch.randint(0, 12, (2, 32), generator=seeded(2))
    literal = reference.mdlm_forward(reference.random_mdlm(11, C, L, E, seeded(0)), 2, xt)[..., :11]
    assert (model(xt) - literal).abs().max() < 1e-4
    (tmp_path / "mine.txt").write_text("abc hi " * 200)
    run(
        "data/text/prepare.py",
        f"--input={tmp_path}/mine.txt",
        f"--out_dir={tmp_path}/data",
        f"--tokenizer={folder}",
    )
    args = [
        "--device=cpu",
        "--eval_iters=1",
        "--batch_size=2",
        "--gradient_accumulation_steps=1",
        "--eval_interval=2",
    ]
    more = [
        "--block_size=16",
        "--max_iters=2",
        f"--dataset={tmp_path}/data",
        f"--init_from={folder}",
    ]
    run("train.py", *args, *more, f"--out_dir={tmp_path}/run")
    more = [
        "--iters_per_round=2",
        "--rounds=1",
        f"--teacher={tmp_path}/run/ckpt.pt",
    ]
    run("distill.py", *args, *more, f"--out_dir={tmp_path}/sdtt")
    student = f"--ckpt={tmp_path}/sdtt/round_1.pt"
    run("-m", "extras.published", student, f"--out={tmp_path}/student")
    assert data.same_vocabulary(
        published.read_model(f"{tmp_path}/student")["meta"], published.read_model(folder)["meta"]
    )
    # it is a file beside it
    assert "json" not in json.loads((tmp_path / "student" / "config.json").read_text())["meta"]
    sample, _ = sampled(f"{tmp_path}/student", "hi a")
    assert sample.startswith("hi a") and len(sample.replace("##b", "b")) == 16


def test_without_a_tokenizer_text_is_token_ids(tmp_path):
    folder = small_folder(tmp_path / "eleven")
    (tmp_path / "mine.txt").write_text("3 1 4 10 0 " * 200)
    run(
        "data/text/prepare.py",
        f"--input={tmp_path}/mine.txt",
        f"--out_dir={tmp_path}/data",
        f"--tokenizer={folder}",
    )
    corpus = data.load(f"{tmp_path}/data")
    assert corpus.train[:6].tolist() == [3, 1, 4, 10, 0, 3] and data.same_vocabulary(
        corpus.meta, published.read_model(folder)["meta"]
    )
    sample, told = sampled(folder, "7 8 10 0")
    assert (
        sample.startswith("7 8 10 0 ") and len(sample.split()) == 32 and "no tokenizer.json" in told
    )


def test_a_tokenizer_that_is_not_the_models_raises(tmp_path, error_of):
    for i, (text, words) in enumerate(
        [
            (tokenizer_json([*WORDS, "x", "y"]), ["11 tokens", "'y' as token 12"]),
            (tokenizer_json([*WORDS[:-1], "[MASK]"]), ["[MASK] as token 10", "11"]),
            ("{", ["can be read"]),
            ("[]", ["can be read"]),
        ]
    ):
        said = error_of(published.read_model, small_folder(tmp_path / str(i), text))
        assert all(word in said for word in words), said
    masked = small_folder(tmp_path / "mask", tokenizer_json(special=["[MASK]"]), eos_token_id=4)
    meta = published.read_model(masked)["meta"]
    encode, decode = data.encoder(meta)
    assert (
        encode("ab h") == [0, 1, 10, 7]
        and decode([0, 1, 10, 7]) == "ab h"
        and data.start_token(meta) == 4
    )
    assert "cannot write" in error_of(encode, "a[MASK]")
    encode, decode = data.encoder({"tokenizer": "ids", "vocab_size": 11})
    assert encode(decode([3, 1, 10])) == [3, 1, 10]
    assert "'11' is no token id from 0 to 10" in error_of(encode, "3 11") and "'a'" in error_of(
        encode, "a"
    )


def test_without_the_package_the_model_loads_and_text_raises_in_one_line(
    tmp_path, monkeypatch, error_of
):
    folder = small_folder(tmp_path / "eleven", tokenizer_json())
    data.tokenizers.json_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert load_model(folder)[0].config.vocab_size == 11
    assert "pip install tokenizers" in error_of(data.encoder, published.read_model(folder)["meta"])


def test_a_gpt2_sized_vocabulary_is_gpt2s_only_if_its_words_are(gpt2, tmp_path):
    meta = {}
    for name, word in {"english": "\u0120gazed", "other": "\u0120ol\u00e1"}.items():
        folder = folder_of(tmp_path / name, {**GPT2, "eos_token_id": V - 1}, gpt2)
        vocab = {f"t{i}": i for i in range(V - 2)} | {word: V - 2, "<|endoftext|>": V - 1}
        text = json.dumps(
            {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}, "added_tokens": []}
        )
        (tmp_path / name / "tokenizer.json").write_text(text)
        meta[name] = published.read_model(folder)["meta"]
    assert meta["english"] == data.GPT2_META
    assert meta["other"] == {"tokenizer": "json", "vocab_size": V, "json": text, "eot": V - 1}


def test_a_card_says_the_unit_of_the_validation_loss():
    gpt = tiny_model(causal=True)
    for config, unit in (
        ({}, "nats per token"),
        ({"method": "soft"}, "nats per token"),
        ({"method": "t5", "learn": "text", "divergence": "kl_fwd"}, "nats per token"),
        ({"method": "t5", "learn": "teacher", "divergence": "tvd"}, "tvd to its teacher"),
        ({"method": "kd"}, "the loss of its distillation"),
    ):
        assert published.unit_of_loss(gpt, {"config": config}) == unit
    bound = published.unit_of_loss(tiny_model(), {"config": {}})
    assert bound == "nats per token, an upper bound"


def test_what_is_published_has_a_card_with_its_numbers(tmp_path, error_of):
    """All that the card says is of the checkpoint; and a card that somebody wrote stays."""
    model, checkpoint = load_model(small_folder(tmp_path / "eleven"))
    checkpoint |= {"step": 1200, "val_loss": 0.43219, "made_for": {"steps": 2, "sampler": "spread"}}
    checkpoint["config"] |= {"method": "sdtt", "divergence": "kl_bwd", "dataset": "/home/me/texts"}
    save_model(str(tmp_path / "mine"), model, checkpoint)
    n = sum(p.numel() for p in model.parameters())
    card = (tmp_path / "mine" / "README.md").read_text()
    for words in (
        f"{n:,}: 2 layers",
        "context 32",
        "1,200",
        "0.4322, kl_bwd",
        "| trained on | texts |",
        "11 tokens",
    ):
        assert words in card
    assert (
        "steps 2, sampler spread" in card
        and "sample.py --ckpt=hub:OWNER/mine" in card
        and "/home" not in card
    )
    assert load_model(str(tmp_path / "mine"))[1]["made_for"] == {"steps": 2, "sampler": "spread"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("by hand")
    save_model(str(tmp_path / "other"), model, checkpoint)
    assert (tmp_path / "other" / "README.md").read_text() == "by hand"
