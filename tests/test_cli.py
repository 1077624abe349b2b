"""
python -m pytest tests/test_cli.py

knobs, sample.py, and every command a README reader types, at toy size
"""

import glob
import importlib
import json
import os
import re
import runpy

import pytest
import torch
from conftest import ROOT, needs_gpt2, run

import configurator
import data
import distill
import sample as S
import train
from model import GPTConfig
from plumbing import terminal

KNOBS = {"lr": 1e-3, "n_layer": 4, "name": "x", "flag": False, "steps": [1, 2]}


def test_values_take_the_type_of_the_default():
    argv = ["--lr=1", "--n_layer=8", "--name=a=b", "--flag=True", "--steps=4,8"]
    got = configurator.parse(argv, KNOBS)
    assert got == {"lr": 1.0, "n_layer": 8, "name": "a=b", "flag": True, "steps": [4, 8]}
    assert type(got["lr"]) is float
    assert configurator.parse(["--steps=[4]", "--name=7", "--steps=16"], KNOBS) == {
        "name": "7",
        "steps": [16],
    }
    assert configurator.parse(["--p=1,0.9"], {"p": [0.5]}) == {"p": [1.0, 0.9]}


def test_a_file_may_hold_no_other_value(tmp_path, error_of):
    (tmp_path / "c.py").write_text("steps = (4, 8)\n")
    assert "steps" in error_of(configurator.parse, [str(tmp_path / "c.py")], KNOBS)
    (tmp_path / "c.py").write_text("learning_rte = None\n")
    assert "learning_rte" in error_of(configurator.parse, [str(tmp_path / "c.py")], KNOBS)


def test_later_settings_win_and_files_may_compute(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("import math\n_half = 4\nn_layer = 2 * _half\nlr = 1\n")
    assert configurator.parse([str(file), "--n_layer=3"], KNOBS) == {"lr": 1.0, "n_layer": 3}
    assert configurator.parse(["--n_layer=3", str(file)], KNOBS) == {"lr": 1.0, "n_layer": 8}


def test_mistakes_in_knobs_raise_with_the_nearest_name(tmp_path, error_of):
    file = tmp_path / "c.py"
    file.write_text("n_layers = 2\n")
    for argv, words in {
        (str(file),): ["n_layers", "c.py", "n_layer?"],
        ("--n_laye=3",): ["n_laye ", "n_layer?"],
        ("--zzz=3",): ["zzz", "--help"],
        ("--n_layer=2.5",): ["int", "2.5", "4"],
        ("--n_layer=two",): ["int", "'two'"],
        ("--flag=1",): ["bool", "False"],
        ("--n_layer",): ["--n_layer=VALUE"],
        ("config/none.py",): ["config/none.py", "--key=value"],
        ("out/ckpt.pt",): ["not a config file"],
        ("config",): ["not a config file"],
        ("--steps=4,'a'",): ["list", "[1, 2]"],
    }.items():
        said = error_of(configurator.parse, list(argv), KNOBS)
        assert all(w in said for w in words), said


@pytest.mark.parametrize("script", ["train.py", "distill.py", "sample.py", "eval.py"])
def test_help_prints_every_knob_with_its_comment(script):
    out, _ = run(script, "--help")
    knobs = runpy.run_path(os.path.join(ROOT, script))["cfg"]
    assert all(re.search(rf"^{k} = ", out, re.M) for k in vars(knobs))
    assert "import " not in out


def test_an_autoregressive_text_stops_at_eos():
    ended = torch.tensor([3, 1, 2, 3, 0])
    assert S.text_end(ended, 1, 3) == 3  # not at the one that it starts from
    assert S.text_end(ended, 1, 4) == S.text_end(ended, 1, None) == 5


def test_importing_a_script_parses_and_prints_nothing():
    out, _ = run(
        "-c", "import sys; sys.argv = ['x', '--nonsense=1']; import train, distill, sample, eval"
    )
    assert out == ""


def test_a_misspelled_knob_is_one_line_on_the_terminal():
    _, said = run("train.py", "--learning_rat=1", ok=False)
    assert said.count("\n") == 1
    assert "learning_rate?" in said


def script_of(path):
    """A config file -> the module that the command in its docstring runs."""
    name = os.path.basename(path)
    with open(path, encoding="utf-8") as f:
        found = re.search(rf"(?:(\w+)\.py|-m ([\w.]+)) config/{name}", f.read())
    assert found, f"{name} does not say what runs it"
    return importlib.import_module(found[1] or found[2])


CONFIGS = sorted(glob.glob(os.path.join(ROOT, "config", "*.py")))


@pytest.mark.parametrize("path", CONFIGS, ids=os.path.basename)
def test_every_config_file_holds_only_knobs_and_a_possible_model(path):
    script = script_of(path)
    knobs = vars(script.cfg) | configurator.parse([path], vars(script.cfg))
    if script is distill and knobs["method"] == "sdtt":
        assert distill.plan_rounds(knobs["orig_steps"], knobs["teacher_steps"], knobs["rounds"])
    if script is not train:
        return
    shape = {name: knobs[name] for name in (*train.SHAPE, "dropout", "attention")}
    assert GPTConfig(vocab_size=65, causal=knobs["objective"] == "ar", **shape)
    assert knobs["warmup_iters"] < knobs["max_iters"]
    assert knobs["out_dir"].startswith("out/")


TOY = ["--block_size=32", "--n_layer=1", "--n_head=2", "--n_embd=32", "--batch_size=8"]
TOY += ["--max_iters=20", "--eval_interval=10", "--eval_iters=1", "--warmup_iters=2"]
TOY += ["--device=cpu"]


@pytest.fixture(scope="module")
def out(pydoc, tmp_path_factory):
    """The README's first commands at toy size -> folder with ar/ckpt.pt and d/ckpt.pt."""
    out = tmp_path_factory.mktemp("out")
    ar = ["config/train_pydoc_char_ar.py", f"--dataset={pydoc}", *TOY, f"--out_dir={out}/ar"]
    run("train.py", *ar)
    diffusion = ["config/train_pydoc_char.py", f"--dataset={pydoc}", *TOY, f"--out_dir={out}/d"]
    run("train.py", *diffusion, f"--init_from={out}/ar/ckpt.pt", "--sample_interval=10")
    return out


def test_a_run_saves_its_knobs_and_its_log(out):
    config = json.loads((out / "d" / "config.json").read_text())
    assert config["batch_size"] == 8
    assert config["objective"] == "diffusion"
    assert config["n_params"] > 0
    log = [json.loads(line) for line in (out / "d" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if "val_loss" in r] == [10, 20]
    assert all("lr" in r for r in log if "loss" in r)


def text_of(stdout):
    """sample.py's output -> the sampled texts."""
    return [s.split("\n", 1)[1] for s in ("\n" + stdout).split(f"\n{'-' * 40} sample ")[1:]]


def test_sampling_commands(out, tmp_path):
    ckpt = f"--ckpt={out}/d/ckpt.pt"
    first, _ = run("sample.py", ckpt, "--steps=8", "--num_samples=2")
    again, _ = run("sample.py", ckpt, "--steps=8", "--num_samples=2")
    other, _ = run("sample.py", ckpt, "--steps=8", "--num_samples=2", "--seed=2")
    assert text_of(first)[0] == text_of(again)[0] != text_of(other)[0] and len(text_of(first)) == 2
    prompted, _ = run("sample.py", ckpt, "--prompt=The if statement", "--length=80", "--top_p=0.9")
    assert all(t.startswith("The if statement") for t in text_of(prompted))
    assert f"\n{4 * (80 - len('The if statement'))} new tokens in " in prompted
    (tmp_path / "t.txt").write_text('"____" is a ______ of')
    filled, _ = run(
        "sample.py",
        ckpt,
        f"--infill=FILE:{tmp_path}/t.txt",
        "--sampler=confidence",
        "--num_samples=1",
    )
    assert re.match(r'"[^░]{4}" is a [^░]{6} of', text_of(filled)[0], re.S)
    assert "\n10 new tokens in " in filled
    traced, _ = run("sample.py", ckpt, "--trace=True", "--steps=4")
    assert "░" in traced and "0 of 32 tokens masked" in traced
    ar, _ = run(
        "sample.py",
        f"--ckpt={out}/ar/ckpt.pt",
        "--prompt=In",
        "--length=100",
        "--temperature=0.8",
        "--top_k=5",
    )
    assert all(t.startswith("In") for t in text_of(ar))


def test_two_checkpoints_sample_side_by_side(out):
    assert (
        terminal.side_by_side(["a\nbcdef", "x\n\n  y\nz"], 4)
        == "a    | x\nbcde |\nf    |   y\n     | z"
    )
    one, _ = run("sample.py", f"--ckpt={out}/d/ckpt.pt", "--steps=4", "--num_samples=1")
    both, _ = run(
        "sample.py", f"--ckpt={out}/d/ckpt.pt,{out}/ar/ckpt.pt", "--steps=4", "--num_samples=1"
    )
    left = [line.split(" |")[0].rstrip() for line in text_of(both)[0].splitlines()]
    assert (
        "".join(left[2:])
        .replace(" ", "")
        .startswith("".join(text_of(one)[0].split("-----")[0].split()))
    )


def test_speculative_sampling_command(out, pydoc):
    run("train.py", f"--dataset={pydoc}", "--arch=ngram", "--ngram_n=3", f"--out_dir={out}/ngram")
    greedy = ["sample.py", f"--ckpt={out}/ar/ckpt.pt", "--temperature=0", "--num_samples=2"]
    plain, _ = run(*greedy)
    for draft in (f"{out}/ngram/ngram.txt", "lookup", f"{out}/ar/ckpt.pt"):
        said, _ = run(*greedy, f"--draft={draft}", f"--gamma={0 if draft == 'lookup' else 3}")
        for text, plain_text in zip(text_of(said), text_of(plain), strict=True):
            assert text.split("-" * 40)[0] == plain_text.split("-" * 40)[0]
        if draft == "lookup" and "no drafts: in a short trial plain decoding was faster" in said:
            continue  # the measured time decides
        assert re.search(r"% of the tokens were drafted; gamma \d+, alpha \d\.\d\d, ", said)
        assert re.search(r", \d+\.\d\d tokens per forward pass of the target; ", said)
        assert re.search(r"; \d+ drafts proposed, \d+ rejected", said)


def test_accepted_drafts_are_green():
    decode = lambda ids: "".join("abcd"[i] for i in ids)  # noqa: E731
    assert terminal.colored([1, 2, 3], [False, True, True], decode) == "b\033[32mcd\033[0m"


def test_samples_with_drafts_differ_and_repeat(out):
    cfg = S.cfg.__class__(**{**vars(S.cfg), "device": "cpu", "draft": "lookup", "gamma": 2})
    model, checkpoint, _, note = S.load(f"{out}/ar/ckpt.pt", cfg)
    template = S.make_template(model, checkpoint["meta"], cfg)
    first, _ = S.sample_with_drafts(model, checkpoint, template, note, cfg)
    again, _ = S.sample_with_drafts(model, checkpoint, template, note, cfg)
    assert first == again and len(set(first)) == cfg.num_samples


def test_sampling_mistakes(out, error_of):
    def refuse(which, *argv):
        cfg = configurator.parse(
            [f"--ckpt={out}/{which}/ckpt.pt", "--device=cpu", *argv], vars(S.cfg)
        )
        return error_of(S.main, type(S.cfg)(**{**vars(S.cfg), **cfg}))

    assert "steps is -1" in refuse("d", "--steps=-1")
    assert "sampler is 'x'" in refuse("d", "--sampler=x")
    assert "attention is 'x'" in refuse("d", "--attention=x")
    assert "compile is 'x'" in refuse("d", "--compile=x")
    assert "no room in 32" in refuse("d", "--prompt=" + "x" * 32)
    assert "no blank '_'" in refuse("d", "--infill=no blanks")
    assert "either" in refuse("d", "--infill=_", "--prompt=x")
    assert "none.txt cannot be read" in refuse("d", "--prompt=FILE:none.txt")
    assert "num_samples is 0" in refuse("d", "--num_samples=0")
    assert "has no" in refuse("d", "--prompt=\u4e16")
    assert "Use a diffusion" in refuse("ar", "--infill=a _ b")
    assert "Use a diffusion" in refuse("ar", "--infill=_")
    assert "--blank must not be empty" in refuse("d", "--infill=a_", "--blank=")
    assert "length is 9, but" in refuse("d", "--infill=a_", "--length=9")
    assert "sampler is 'best'" in refuse("none", "--sampler=best")  # before anything is loaded
    assert "top_p is 0.0" in refuse("d", "--top_p=0")
    assert "temperature is -1.0" in refuse("d", "--temperature=-1")
    assert "cooling is 0.5, but a GPT" in refuse("ar", "--cooling=0.5")
    assert "top_k is -1" in refuse("ar", "--top_k=-1")
    assert "a diffusion model" in refuse("ar", "--trace=True")
    assert "diffusion model" in refuse("d", "--draft=lookup")
    assert "diffusion model" in refuse("ar", f"--draft={out}/d/ckpt.pt")
    assert "cannot fill in blanks" in refuse("ar", "--draft=lookup", "--infill=a _ b")
    assert "cannot fill in blanks" in refuse("ar", "--draft=lookup", "--infill=_")
    assert "no n-gram file" in refuse("ar", "--draft=none.txt")
    assert "context of 32" in refuse("ar", "--draft=lookup", "--gamma=2", "--length=40")
    assert "one --ckpt" in refuse("d", "--trace=True", f"--ckpt={out}/d/ckpt.pt,{out}/d/ckpt.pt")
    assert "There is no checkpoint" in refuse("none")


def test_evaluation_command(out, tmp_path):
    both = [f"--ckpt={out}/d/ckpt.pt,{out}/ar/ckpt.pt", f"--evaluator={out}/ar/ckpt.pt"]
    few = ["--steps=2,4", "--num_samples=4", "--eval_blocks=8", f"--out={tmp_path}"]
    said, _ = run("eval.py", *both, *few)
    assert "bits per character" in said
    assert "real text" in said
    assert os.path.exists(tmp_path / "eval.png")


def test_the_vocabulary_travels_in_the_checkpoint(out):
    meta = torch.load(out / "d" / "ckpt.pt", weights_only=True)["meta"]
    encode, decode = data.encoder(meta)
    assert decode(encode("The if statement")) == "The if statement"


MACHINES = ("_24gb", "_t4")  # what a config's name ends with if it is made for that GPU


@pytest.mark.parametrize(
    "name",
    [name for name in map(os.path.basename, CONFIGS) if any(m in name for m in MACHINES)],
)
def test_a_config_named_by_its_gpu_runs_in_its_own_format(name, pydoc, out, tmp_path):
    config = os.path.join("config", name)
    knobs = configurator.read_config(os.path.join(ROOT, config))
    script = script_of(config)
    few = [*TOY, f"--dataset={pydoc}", "--gradient_accumulation_steps=1"]
    if script is distill:
        names = ("batch_size", "eval_iters", "warmup_iters", "device", "dataset", "gradient")
        few = [knob for knob in few if knob.startswith(tuple(f"--{name}" for name in names))]
        few += [f"--teacher={out}/d/ckpt.pt", "--rounds=1", "--iters_per_round=2"]
        few += ["--eval_interval=2", "--orig_steps=8"]
    elif "init_from" in knobs and knobs["init_from"] != "scratch":
        few += [f"--init_from={out}/ar/ckpt.pt"]
    said, _ = run(f"{script.__name__}.py", config, *few, f"--out_dir={tmp_path}")
    used = json.loads((tmp_path / "config.json").read_text())
    assert used["dtype"] == knobs["dtype"] != "" and f"(as asked), {knobs['dtype']}" in said


@pytest.mark.slow
@needs_gpt2
def test_the_openwebtext_path_from_documents_to_lambada(tmp_path):
    """The same commands and configs as on 8 GPUs, with a small collection and small models."""
    texts = []
    for i in range(400):
        texts.append(f"Number {i} follows number {i - 1}, as all know who read about number {i}.")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "lambada.txt").write_text("\n".join(texts[7:12]))
    owt = ["--val_fraction=0.2", f"--out_dir={tmp_path}/owt"]
    run("data/openwebtext/prepare.py", f"--input={tmp_path}/texts.jsonl", *owt)
    run("data/lambada/prepare.py", f"--input={tmp_path}/lambada.txt", f"--out_dir={tmp_path}/words")

    cpu = ["--device=cpu", "--batch_size=2", "--gradient_accumulation_steps=1", "--eval_iters=1"]
    cpu += ["--eval_interval=2"]
    small = [*cpu, "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--max_iters=2"]
    small += ["--warmup_iters=1", f"--dataset={tmp_path}/owt"]
    for config, out in (("train_openwebtext_ar", "ar"), ("train_openwebtext", "diffusion")):
        run("train.py", f"config/{config}.py", *small, f"--out_dir={tmp_path}/{out}")
    ar = f"{tmp_path}/ar/ckpt.pt"
    converted = [f"--init_from={ar}", f"--out_dir={tmp_path}/gpt2"]
    run("train.py", "config/train_openwebtext_gpt2_24gb.py", *small, *converted)
    rounds = [f"--teacher={tmp_path}/diffusion/ckpt.pt", "--rounds=2", "--iters_per_round=2"]
    rounds += [f"--out_dir={tmp_path}/sdtt"]
    run("distill.py", "config/sdtt_openwebtext.py", *cpu, *rounds)
    student = f"{tmp_path}/sdtt/round_2.pt"

    few = ["--num_samples=4", "--steps=4", "--device=cpu", f"--out={tmp_path}/s.jsonl"]
    run("-m", "extras.save_samples", f"--ckpt={student}", *few)
    few = ["--eval_blocks=4", "--device=cpu", f"--out={tmp_path}/e"]
    file = ["--ckpt=", f"--samples={tmp_path}/s.jsonl", f"--evaluator={ar}"]
    said, _ = run("eval.py", *file, "--what=genppl,selfbleu", *few)
    assert "self_bleu" in said and "real text" in said
    said, _ = run("eval.py", f"--ckpt={student},{ar}", "--what=nelbo", *few)
    assert "validation <=" in said
    words = ["--device=cpu", f"--passages={tmp_path}/words"]
    said, _ = run("-m", "extras.lambada", f"--ckpt={student},{ar}", *words)
    assert "LAMBADA accuracy" in said


@pytest.mark.parametrize("script", ["sample.py", "distill.py"])
def test_the_debug_config_knows_which_script_it_serves(script, tmp_path):
    """It names another checkpoint than the script itself, which shows in what is missing."""
    os.symlink(os.path.join(ROOT, "config"), tmp_path / "config")
    path = os.path.join(ROOT, script)
    env = {"PYTHONPATH": ROOT}
    _, said = run(path, "config/debug.py", ok=False, cwd=tmp_path, env=env)
    assert "no checkpoint out/debug/diffusion/ckpt.pt" in said
