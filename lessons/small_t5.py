"""
A small T5, a tiny one, their tokenizer, and pairs to train them on: all from the text inside
Python, no download.
$ python lessons/small_t5.py    (10 seconds; the commands that go on with it are in chapter 6)

A pair: sentences that follow each other in the language reference or a docstring, and the first of
them as their summary: it has to be copied, as summaries repeat their articles. The models are
untrained; `python -m extras.t5` trains them.
"""

import glob
import os
import re
import sys
import sysconfig

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))  # so that it runs from anywhere
import data
from configurator import UserError, configure
from data.texts import python_reference
from data.tokenizers import import_transformers

# --------------------------------------------------------------------------------------------------
out_dir = "out/t5"  # gets pairs.jsonl, and the folders small and tiny for hf:
vocab_size = 1000  # pieces of the tokenizer
sentences = 12  # of an article
shortest = 50  # characters of a summary
longest = 120
small = [4, 8, 256]  # layers of encoder and decoder each, heads, width: the target
tiny = [2, 4, 64]  # the same of a drafter that reads the article as well
copies = True  # begin with what copying takes; False: as T5 begins
seed = 1337
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

# ids 0, 1 and 2, as T5 has them
PIECES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
DOCSTRING = re.compile(r':\n +r?"""(.+?)"""', re.S)  # what follows a line such as "def f():"
NO_PROSE = re.compile(r">>>|::=|[=*~-]{4}|\(Pdb\)")  # examples, grammar, headings, tables


def docstrings():
    """-> the docstrings of Python's standard library, each once."""
    root = sysconfig.get_path("stdlib")
    found = {}
    for name in sorted(glob.glob("**/*.py", root_dir=root, recursive=True)):
        if not re.search("test|(site|dist)-packages", name):
            with open(os.path.join(root, name), encoding="utf-8", errors="replace") as f:
                found |= dict.fromkeys(DOCSTRING.findall(f.read()))
    return list(found)


def prose():
    """-> [sentence, ...] of the language reference and of the standard library, in their order."""
    (reference,), _ = python_reference()
    paragraphs = "\n\n".join([*reference(), *docstrings()]).split("\n\n")
    paragraphs = [" ".join(p.split()) for p in paragraphs if not NO_PROSE.search(p)]
    return [s for p in paragraphs for s in re.split(r'(?<=[.!?]) (?=[A-Z"])', p)]


def pairs(said, cfg):
    """
    [sentence, ...] -> [{"article", "highlights"}, ...]: no summary twice, so none is both trained
    on and tested.
    """
    found = {}
    for i, sentence in enumerate(said):
        if cfg.shortest <= len(sentence) <= cfg.longest:
            found.setdefault(sentence, " ".join(said[i : i + cfg.sentences]))
    return [{"article": article, "highlights": summary} for summary, article in found.items()]


def tokenizer_of(said, vocab_size):
    """
    [sentence, ...] -> a tokenizer of byte-pair merges that ends a source with </s>, as T5's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(PIECES.values()), show_progress=False
    )
    made.train_from_iterator(said, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **PIECES
    )


def t5(vocab_size, shape, seed, copies):
    """-> an untrained T5 in the shape of FLAN-T5: gated GELU, a head of its own."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    layers, heads, width = shape
    config = T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    # Begins as the embedding, so that what is read can soon be written; a new parameter, or
    # transformers goes on tying it.
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach() * width**-0.5)
    if copies:
        begin_with_what_copying_takes(model, width // heads)
    return model


def begin_with_what_copying_takes(model, head_size):
    """
    FLAN-T5 has learned to copy in a million steps. A small one does in hundreds, if this is there
    from the start.
    """
    for block in model.decoder.block:
        across = block.layer[1].EncDecAttention
        # a token looks for its like ...
        across.q.weight.data = across.k.weight.detach() * head_size**-0.5
        # ... and writes what it reads there
        across.o.weight.data = across.v.weight.detach().T.contiguous()
    for stack in (model.encoder, model.decoder):
        # heads look at different distances: T5 knows positions by these numbers alone, and begins
        # with nearly none
        attention = stack.block[0].layer[0].SelfAttention
        attention.relative_attention_bias.weight.data.normal_(std=3.0)


if __name__ == "__main__":
    if vocab_size < 300 or sentences < 2:
        raise UserError("vocab_size must be at least 300, sentences at least 2.")
    import_transformers()  # it is missing? Say so now
    said = prose()
    tokenizer = tokenizer_of(said, vocab_size)
    found = pairs(said, cfg)
    for name, shape in (("small", small), ("tiny", tiny)):
        model = t5(len(tokenizer), shape, seed, copies)
        folder = os.path.join(out_dir, name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        n_params = sum(p.numel() for p in model.parameters())
        print(f"{folder}: {n_params / 1e6:.2f} M parameters")
    data.write_jsonl(os.path.join(out_dir, "pairs.jsonl"), found)
    print(f"{out_dir}/pairs.jsonl: {len(found)} pairs")
