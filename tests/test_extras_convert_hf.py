"""
python -m pytest tests/test_extras_convert_hf.py    decoders of transformers that fill in masks
"""

import types

import numpy as np
import pytest
import torch
import transformers
from conftest import run
from test_extras_huggingface import WORDS, make

import data
from drafters import load_model
from extras import convert_hf, huggingface
from model import nelbo, unmask
from plumbing.checkpoints import load_checkpoint
from plumbing.randomness import seeded


@pytest.fixture(scope="module", params=[("llama", len(WORDS)), ("qwen", len(WORDS) + 3)])
def path(request, tmp_path_factory):
    """-> hf:folder of a tiny decoder, with as many rows as there are tokens, or some more."""
    kind, rows = request.param
    return make(kind, tmp_path_factory.mktemp("hf") / kind, 1, rows=rows)


@pytest.fixture(scope="module")
def text(path, tmp_path_factory):
    """The folder of a dataset in that vocabulary: a b c d a b c d ..."""
    folder = str(tmp_path_factory.mktemp("data"))
    tokens = 3 + np.arange(2000) % 4
    data.write(folder, tokens, tokens[:400], huggingface.about(path)["meta"])
    return folder


def knobs(path, text, out_dir, **kw):
    few = dict(max_iters=4, batch_size=4, eval_interval=2, eval_iters=1, warmup_iters=1)
    few |= dict(model=f"{path}@16", dataset=text, out_dir=str(out_dir))
    few |= dict(device="cpu", dtype="float32")
    return types.SimpleNamespace(**{**vars(convert_hf.cfg), **few, **kw})


@torch.no_grad()
def test_a_position_is_predicted_by_the_one_before_it_which_sees_all(path):
    model = convert_hf.DiffusionDecoder(path).double()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path[3:], dtype=torch.float64)
    rows = theirs.get_input_embeddings().weight[: len(WORDS)]
    rows = torch.cat([rows, rows.mean(0, keepdim=True)])
    x = torch.tensor([[3, 4, model.mask_id, 5, model.mask_id, 6]])
    start = torch.tensor([model.alone])
    found = theirs(
        inputs_embeds=rows[torch.cat([start, x], dim=1)],
        attention_mask=torch.zeros(1, 1, 7, 7, dtype=torch.float64),
    )
    assert model.mask_id == len(WORDS)
    expected = found.logits[:, :-1, : len(WORDS)]
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)  # a mean in float32


def test_it_learns_resumes_bit_identical_and_fills_in_text(path, text, tmp_path):
    whole = knobs(path, text, tmp_path / "whole", max_iters=60, eval_interval=30)
    whole.learning_rate = 3e-3
    convert_hf.main(whole)
    part = types.SimpleNamespace(**{**vars(whole), "out_dir": str(tmp_path / "part")})
    part.eval_interval = 30
    stopped = {}

    def stop(*args):
        stopped["at"] = True
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_hf, "fit", interrupted(convert_hf.fit, stop))
        convert_hf.main(part)
    part.init_from = "resume"
    convert_hf.main(part)
    first, second = (load_checkpoint(f"{tmp_path}/{n}/ckpt.pt") for n in ("whole", "part"))
    assert stopped["at"] and first["step"] == second["step"] == 60
    for name, weight in first["model"].items():
        assert torch.equal(weight, second["model"][name])

    model, checkpoint = load_model(str(tmp_path / "whole" / "ckpt.pt"))
    x = data.blocks(data.load(text).val, 15, 8)
    before = nelbo(convert_hf.DiffusionDecoder(f"{path}@16"), x, seeded(0))
    assert nelbo(model, x, seeded(0)) < 0.7 * before
    blanks = x.masked_fill(torch.rand(x.shape, generator=seeded(1)) < 0.5, model.mask_id)
    filled = unmask(model, blanks, 8, generator=seeded(2))
    known = blanks != model.mask_id
    assert torch.equal(filled[known], x[known])
    assert (filled == x)[~known].float().mean() > 0.5  # by chance 0.1
    assert checkpoint["meta"]["vocab_size"] == len(WORDS)


def interrupted(fit, stop):
    """fit, with a save that stops the run after its first checkpoint."""

    def fit_and_stop(model, loss, get_batch, cfg, on_eval, save, resume=None):
        def save_and_stop(*args):
            save(*args)
            stop()

        return fit(model, loss, get_batch, cfg, on_eval, save_and_stop, resume)

    return fit_and_stop


def test_commands_train_sample_and_evaluate(path, text, tmp_path):
    few = ["--max_iters=2", "--batch_size=2", "--eval_interval=2", "--eval_iters=1"]
    model = [f"--model={path}@16", f"--dataset={text}", f"--out_dir={tmp_path}/run"]
    run("-m", "extras.convert_hf", *few, *model, "--device=cpu", "--sample_interval=2")
    ckpt = f"--ckpt={tmp_path}/run/ckpt.pt"
    said, _ = run("sample.py", ckpt, "--num_samples=1", "--steps=4", "--prompt=a b")
    text_of_sample = said.split("sample 1\n")[1]
    assert text_of_sample.replace(" ", "").startswith("ab")
    nll = ["--what=nelbo", "--eval_blocks=4", f"--out={tmp_path}/eval"]
    said, _ = run("eval.py", ckpt, f"--dataset={text}", *nll)
    assert "validation <=" in said
    _, said = run("-m", "extras.huggingface", ckpt, f"--out={tmp_path}/hf", ok=False)
    assert "is a diffusion model" in said


def test_mistakes_end_in_one_line(path, text, tmp_path, error_of):
    def mistake(**kw):
        return error_of(convert_hf.train, knobs(path, text, tmp_path / "run", **kw))

    assert "must be a decoder" in mistake(model="gpt2")
    t5 = make("t5", tmp_path / "t5", 1)
    assert "must be a decoder" in mistake(model=t5)
    assert "nothing to resume" in mistake(init_from="resume")
    assert "'scratch'" in mistake(init_from="scratch")
    other = str(tmp_path / "other")
    data.write(other, np.arange(300) % 4, np.arange(100) % 4, data.GPT2_META)
    assert "another vocabulary" in mistake(dataset=other)
    short = str(tmp_path / "short")
    data.write(short, np.arange(10) % 4, np.arange(10) % 4, huggingface.about(path)["meta"])
    assert "too short" in mistake(dataset=short)


def test_a_model_that_stays_causal_raises(path, error_of, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda a, b: True)
    assert "stays causal" in error_of(convert_hf.DiffusionDecoder, path)
