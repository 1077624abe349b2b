"""
python -m pytest tests/test_foreign.py        files of nanoGPT, Lightning and others, and their line
"""

import argparse
import os
import pickle
import runpy
import shlex
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import needs_gpt2, run

import data
from plumbing.checkpoints import load_checkpoint
from plumbing.foreign import what_is

WEIGHTS = {"transformer.wte.weight": torch.ones(3, 2)}
NANOGPT = {"model": WEIGHTS, "model_args": {"n_layer": 1}, "iter_num": 2, "config": {}}
LIGHTNING = {"pytorch-lightning_version": "2.2.1", "state_dict": WEIGHTS, "epoch": 0}


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "saved, words",
    [
        (NANOGPT | {"best_val_loss": torch.tensor(1.5)}, "is a checkpoint of nanoGPT, whose"),
        (NANOGPT | {"best_val_loss": np.float64(1.5)}, "python train.py config/train_shakespeare"),
        (LIGHTNING, "is a checkpoint of Lightning. Give a folder"),
        (LIGHTNING | {"hyper_parameters": argparse.Namespace(lr=1)}, "--ckpt=mdlm-owt"),
        (WEIGHTS, "is weights alone. Give a folder with its weights as model.safetensors"),
        (torch.nn.Linear(2, 2), "is a pickle of torch.nn.modules.linear.Linear, and none is"),
    ],
)
def test_a_checkpoint_of_another_program_is_named(saved, words, zipped, tmp_path, error_of):
    path = str(tmp_path / "ckpt.pt")
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert words in error_of(load_checkpoint, path)


def test_other_files_are_named_too(tmp_path, error_of, recwarn):
    def said_of(name):
        return error_of(load_checkpoint, str(tmp_path / name))

    vocabulary = {"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 0, "b": 1}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(vocabulary))
    assert "is a vocabulary of nanoGPT, a pickle, and none" in said_of("meta.pkl")
    safetensors.torch.save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert f"Give the folder, which has their config.json: {tmp_path}" in said_of(
        "model.safetensors"
    )
    data.write(str(tmp_path), np.arange(9), np.arange(9), {"tokenizer": "ids", "vocab_size": 9})
    assert f"as token ids: --dataset={tmp_path}" in said_of("train.bin")
    (tmp_path / "ngram.txt").write_text("{}")
    assert f"is an n-gram, which drafts for a GPT: --draft={tmp_path}" in said_of("ngram.txt")
    assert not recwarn.list  # torch has a long one for pickles


def test_what_is_not_known_is_damaged_or_has_no_model_config(tmp_path, error_of):
    for name, content in {"empty.pt": b"", "text.pt": b"hello", "cut.pt": b"\x80\x04\x95"}.items():
        (tmp_path / name).write_bytes(content)
        assert "damaged or not a checkpoint" in error_of(load_checkpoint, str(tmp_path / name))
    torch.save({"step": 1}, tmp_path / "dict.pt")
    assert "it holds no model_config" in error_of(load_checkpoint, str(tmp_path / "dict.pt"))
    assert what_is(str(tmp_path / "none.pt")) == ""


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_looked_at_and_never_loaded(protocol, tmp_path, error_of):
    made = str(tmp_path / "made")
    path = str(tmp_path / "ckpt.pt")
    (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Attack(made), protocol=protocol))
    assert f"is a pickle of {os.name}.mkdir, and none is" in error_of(load_checkpoint, path)
    torch.save({"model_config": {}, "x": Attack(made)}, path, pickle_protocol=protocol)
    assert f"is a pickle of {os.name}.mkdir, and none is" in error_of(load_checkpoint, path)
    assert not os.path.exists(made)


# --------------------------------------------------------------------------------------------------
# datasets of nanoGPT


def nanogpt_folder(folder, ids):
    """What nanoGPT's prepare.py leaves of these ids."""
    folder.mkdir()
    np.array(ids, np.uint16).tofile(folder / "train.bin")
    np.array(ids[:300], np.uint16).tofile(folder / "val.bin")
    return str(folder)


def command_in(said):
    """'...: python SCRIPT ARGS. ...' -> [SCRIPT, ARGS]"""
    return shlex.split(said.split("python ")[1].split(". Else")[0])


def test_a_folder_of_gpt2_ids_trains_after_one_command(tmp_path, error_of):
    ids = [50256, *range(198, 1198)]
    folder = nanogpt_folder(tmp_path / "nano", ids)
    said = error_of(data.load, folder)
    assert "If it is nanoGPT's, of GPT-2 byte pairs: python data/nanogpt/prepare.py" in said
    run(*command_in(said))
    corpus = data.load(folder)
    assert corpus.train.tolist() == ids and corpus.meta["eot"] == 50256
    assert (corpus.meta["train_tokens"], corpus.meta["val_tokens"]) == (1001, 300)
    assert data.same_vocabulary(corpus.meta, data.GPT2_META)
    few = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2"]
    few += ["--max_iters=1", "--eval_iters=1", "--device=cpu", f"--out_dir={tmp_path}/run"]
    run("train.py", f"--dataset={folder}", *few)
    assert os.path.exists(tmp_path / "run" / "ckpt.pt")


@needs_gpt2
def test_its_text_reads_as_it_was_written(tmp_path):
    text = "To be, or not to be: that is the question. " * 30
    folder = nanogpt_folder(tmp_path / "nano", data.gpt2().encode_ordinary(text))
    run("data/nanogpt/prepare.py", f"--input={folder}")
    corpus = data.load(folder)
    assert data.encoder(corpus.meta)[1](corpus.train.tolist()) == text


def test_a_folder_of_characters_is_made_again_from_its_text(tmp_path, error_of):
    """nanoGPT sorts the characters and cuts after nine tenths, as data/text does."""
    text = "the cat sat on the mat.\n" * 40
    stoi = {c: i for i, c in enumerate(sorted(set(text)))}
    folder = nanogpt_folder(tmp_path / "nano", [stoi[c] for c in text[: int(0.9 * len(text))]])
    (tmp_path / "nano" / "meta.pkl").write_bytes(pickle.dumps({"stoi": stoi}))
    (tmp_path / "nano" / "input.txt").write_text(text)
    before = (tmp_path / "nano" / "train.bin").read_bytes()
    said = error_of(data.load, folder)
    assert "characters of nanoGPT, whose meta.pkl is a pickle, and none is loaded" in said
    run(*command_in(said))
    assert data.load(folder).train.tobytes() == before
    (tmp_path / "nano" / "meta.json").unlink()
    (tmp_path / "nano" / "input.txt").unlink()
    assert "--input=FILE" in error_of(data.load, folder)


def test_what_is_no_folder_of_gpt2_ids_ends_in_one_line(tmp_path, error_of):
    prepare = runpy.run_path(os.path.join(os.path.dirname(data.__file__), "nanogpt", "prepare.py"))

    def said_of(folder):
        return error_of(prepare["main"], types.SimpleNamespace(input=folder))

    assert "must be a folder of nanoGPT" in said_of("")
    characters = nanogpt_folder(tmp_path / "characters", list(range(60)) * 10)
    assert "has ids up to 59;" in said_of(characters)
    larger = nanogpt_folder(tmp_path / "larger", [50257, 300] * 300)
    assert "has ids up to 50257;" in said_of(larger)
    (tmp_path / "larger" / "val.bin").unlink()
    (tmp_path / "larger" / "train.bin").write_bytes(b"123")
    assert "train.bin cannot be read" in said_of(larger)
    (tmp_path / "characters" / "meta.pkl").touch()
    assert "meta.pkl is a pickle" in said_of(characters)
    assert not os.path.exists(tmp_path / "larger" / "meta.json")
    (tmp_path / "larger" / "meta.json").write_text("{}")
    assert "has a meta.json already" in said_of(larger)
