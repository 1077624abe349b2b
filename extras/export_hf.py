"""
A GPT of ours becomes a folder that `transformers` loads: with learned positions as GPT-2, with rope
as GPT-NeoX, number by number the same model.
$ python -m extras.export_hf --ckpt=out/pydoc_ar/ckpt.pt --out_dir=out/pydoc_ar_hf        (a second)
>>> transformers.AutoModelForCausalLM.from_pretrained("out/pydoc_ar_hf")

Biases that a GPT of ours does not have are zeros there. No layout of transformers is a diffusion
model (each looks at the past only), nor an LSTM or a CNN of ours with its norm and residual.
"""

import os

import safetensors.torch
import torch

import data
from configurator import UserError, configure
from drafters import load_model

# --------------------------------------------------------------------------------------------------
ckpt = "out/pydoc_ar/ckpt.pt"  # a GPT, of learned positions or rope
out_dir = ""  # a new folder: model.safetensors, config.json, and a tokenizer if there is one
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

# ours -> theirs, of a block; a matrix of GPT-2's has its inputs first
GPT2_NAMES = {
    "ln_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
NEOX_NAMES = {
    "ln_1": "input_layernorm",
    "attn.qkv": "attention.query_key_value",
    "attn.proj": "attention.dense",
    "ln_2": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
BPE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
BPE_FILES = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}  # theirs, that of BPE_URL


# --------------------------------------------------------------------------------------------------
# the model


def check_exportable(name, model):
    """Raises UserError, with the reason, for a model that no layout of transformers is equal to."""
    config = model.config
    if config.arch.startswith("hf:"):
        raise UserError(f"{name} is of transformers: python -m extras.huggingface writes it back.")
    if config.arch != "gpt":
        kind = {"lstm": "an LSTM", "cnn": "a CNN"}[config.arch]
        raise UserError(f"{name} is {kind} of ours, and transformers has no such model.")
    if not config.causal:
        raise UserError(
            f"{name} is a diffusion model, and GPTs of transformers look at the past only. For "
            "others to load here: python -m extras.published"
        )
    if config.head_bias:
        raise UserError(f"{name} has a bias in its head, which no layout of theirs has.")


def pair(weights, name, n_outputs):
    """-> weight and bias of one of our layers; a bias that it does not have is zeros."""
    weight = weights[f"{name}.weight"]
    return weight, weights.get(f"{name}.bias", torch.zeros(n_outputs, dtype=weight.dtype))


def gpt2_weights(weights, config):
    """Ours -> {key: tensor} of GPT2LMHeadModel."""
    theirs = {"transformer.wte.weight": weights["wte.weight"]}
    theirs["transformer.wpe.weight"] = weights["wpe.weight"]
    for layer in range(config.n_layer):
        for ours, name in GPT2_NAMES.items():
            w, bias = pair(weights, f"blocks.{layer}.{ours}", outputs_of(ours, config))
            theirs[f"transformer.h.{layer}.{name}.weight"] = w.T if w.dim() == 2 else w
            theirs[f"transformer.h.{layer}.{name}.bias"] = bias
    final = pair(weights, "ln_f", config.n_embd)
    theirs["transformer.ln_f.weight"], theirs["transformer.ln_f.bias"] = final
    if not config.tie_weights:
        theirs["lm_head.weight"] = weights["lm_head.weight"]
    return theirs


def neox_weights(weights, config):
    """Ours -> {key: tensor} of GPTNeoXForCausalLM."""
    theirs = {"gpt_neox.embed_in.weight": weights["wte.weight"]}
    for layer in range(config.n_layer):
        for ours, name in NEOX_NAMES.items():
            both = pair(weights, f"blocks.{layer}.{ours}", outputs_of(ours, config))
            if ours == "attn.qkv":
                both = [head_by_head(x, config.n_head) for x in both]
            weight, bias = both
            theirs[f"gpt_neox.layers.{layer}.{name}.weight"] = weight
            theirs[f"gpt_neox.layers.{layer}.{name}.bias"] = bias
    final = pair(weights, "ln_f", config.n_embd)
    theirs["gpt_neox.final_layer_norm.weight"], theirs["gpt_neox.final_layer_norm.bias"] = final
    if not config.tie_weights:
        theirs["embed_out.weight"] = weights["lm_head.weight"]
    return theirs


def outputs_of(name, config):
    """-> the outputs of one of our layers."""
    return config.n_embd * {"attn.qkv": 3, "mlp.up": 4}.get(name, 1)


def head_by_head(x, n_head):
    """(3C, ...), rows of all queries, all keys, all values -> those of a head after another's."""
    x = x.unflatten(0, (3, n_head, -1))  # (3, H, D, ...)
    return x.transpose(0, 1).flatten(0, 2)


def config_json(config, meta):
    """-> what transformers reads of it."""
    eot = meta.get("eot")
    about = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": data.start_token(meta),  # what it begins with if there is no prompt
        "eos_token_id": eot,
        "pad_token_id": eot,
        "dtype": "float32",
    }
    gelu = "gelu_new" if config.gelu_tanh else "gelu"
    if config.pos == "learned":
        return about | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "activation_function": gelu,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        }
    return about | {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_act": gelu,
        "use_parallel_residual": False,
        "rotary_pct": 1.0,  # all channels of a head turn
        "rotary_emb_base": 10000,
        **dict.fromkeys(("hidden_dropout", "attention_dropout"), config.dropout),
    }


# --------------------------------------------------------------------------------------------------
# its tokenizer


def save_tokenizer(folder, meta, block_size):
    """Writes it, if transformers has one like it -> what is said of it."""
    kind = meta["tokenizer"]
    about = {"model_max_length": block_size}
    if kind == "gpt2":
        import tiktoken.load

        data.gpt2()  # a file that is missing shows here, in one line
        for theirs, name in BPE_FILES.items():
            write(folder, theirs, tiktoken.load.read_file_cached(BPE_URL + name))
        end = "<|endoftext|>"
        about |= {"tokenizer_class": "GPT2Tokenizer", "eos_token": end, "bos_token": end}
    elif kind == "json":
        write(folder, "tokenizer.json", meta["json"].encode())
        about |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif kind.startswith("hf:"):
        name = kind.removeprefix("hf:")
        data.hf_tokenizer(name).save_pretrained(folder)
        if data.opening_of(name)[0]:
            return "its tokenizer, to be called with add_special_tokens=False: it learned no BOS"
        return "its tokenizer"
    else:
        if "itos" not in meta:
            return "no tokenizer: a text is token ids"
        data.write_json(os.path.join(folder, "itos.json"), meta["itos"])
        return "no tokenizer, for transformers has none like it: itos.json is the text of each id"
    data.write_json(os.path.join(folder, "tokenizer_config.json"), about)
    return "its tokenizer"


def write(folder, name, content):
    data.atomic_write(os.path.join(folder, name), content)


# --------------------------------------------------------------------------------------------------


def save(folder, model, meta):
    """Writes the folder, which comes to its name when it is whole -> what is said of it."""
    learned = model.config.pos == "learned"
    weights = {name: p.detach().cpu() for name, p in model.state_dict().items()}
    in_their_layout = gpt2_weights if learned else neox_weights
    theirs = in_their_layout(weights, model.config)
    theirs = {name: p.contiguous() for name, p in theirs.items()}
    part = f"{os.path.normpath(folder)}.tmp"
    said = save_tokenizer(part, meta, model.config.block_size)
    write(part, "model.safetensors", safetensors.torch.save(theirs, {"format": "pt"}))
    data.write_json(os.path.join(part, "config.json"), config_json(model.config, meta))
    os.rename(part, os.path.normpath(folder))
    return f"{'GPT-2' if learned else 'GPT-NeoX'}, with {said}"


def main(cfg):
    if not cfg.out_dir or os.path.exists(cfg.out_dir):
        raise UserError(f"out_dir is {cfg.out_dir!r}. Name a new folder: --out_dir=FOLDER")
    model, checkpoint = load_model(cfg.ckpt)
    check_exportable(cfg.ckpt, model)
    said = save(cfg.out_dir, model, checkpoint["meta"])
    print(f"The model is in {cfg.out_dir}: {said}.")
    print(f"AutoModelForCausalLM.from_pretrained({cfg.out_dir!r}) loads it in transformers.")


if __name__ == "__main__":
    main(cfg)
