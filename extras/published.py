"""
Published models, by name or as a folder: GPT-2, MDLM, SDTT and our own; and a checkpoint as such a
folder. Data only: nothing from a hub is ever executed.
$ python sample.py --ckpt=sdtt:kld:7                    (wherever a script takes a checkpoint)
$ python -m extras.published --ckpt=out/pydoc/ckpt.pt --out=mine                 (a few seconds)
$ hf upload ME/mine mine                                (then it is --ckpt=hub:ME/mine)

gpt2 ... gpt2-xl    Radford et al. 2019
mdlm-owt            Sahoo et al. 2024, arXiv 2406.07524
sdtt:...            Deschenaux & Gulcehre 2024, arXiv 2410.21035: sdtt:kld:7, sdtt:scaling:md:3,
                    sdtt:teacher:large
hub:OWNER/NAME      any other repository of one of these layouts, also hub:OWNER/NAME@REVISION
"""

import dataclasses
import json
import os
import re

import safetensors.torch
import torch
import torch.nn.functional as F

import data
import drafters
from configurator import UserError, configure, first_line, print_once
from plumbing.checkpoints import checkpoint_hint

# --------------------------------------------------------------------------------------------------
ckpt = ""  # the checkpoint that becomes a folder
out = ""  # the folder: model.safetensors, config.json (the vocabulary too) and a README.md
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

PUBLISHED = {  # our name -> repository, revision
    r"gpt2(?:-medium|-large|-xl)?": (r"openai-community/\g<0>", "main"),
    r"mdlm-owt": ("kuleshov-group/mdlm-owt", "main"),
    r"sdtt:(kld|mse|tvd):([1-7])": ("jdeschena/sdtt", r"baselines_\1_step_\g<2>0000"),
    r"sdtt:scaling:(sm|md|large):([1-7])": ("jdeschena/sdtt", r"scaling_400k_\1_step_\g<2>0000"),
    r"sdtt:teacher:(sm|md|large)": ("jdeschena/sdtt", r"teacher_400k_\1_step_400000"),
    r"sdtt:teacher:1M": ("jdeschena/sdtt", "teacher_1M_sm"),
    r"hub:([^@]+)": (r"\1", "main"),
    r"hub:([^@]+)@(.+)": (r"\1", r"\2"),
}
# what a wrong or damaged config.json, tokenizer.json or set of weights can raise
DAMAGE = (UserError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)

# --------------------------------------------------------------------------------------------------
# reading


def hub_address(name):
    """A published name -> its repository and revision, or None."""
    for pattern, address in PUBLISHED.items():
        match = re.fullmatch(pattern, str(name))
        if match:
            return [match.expand(part) for part in address]
    return None


def is_published(name):
    """Whether load_model knows where to look: a folder that is there, or a published name."""
    return os.path.isdir(name) or hub_address(name) is not None


def load_model(path, device="cpu", attention="sdpa"):
    """
    A published name or a folder -> GPT in eval mode, and what a checkpoint says of itself. Raises
    UserError for files of a layout that is not known, and without a network.
    """
    saved = read_model(path)
    model = drafters.model_of(saved, path, attention)
    del saved["model"], saved["ema"]
    return model.to(device), saved


def read_model(path):
    """A published name or a folder -> what a checkpoint holds, as a dict."""
    if not is_published(path):
        names = "gpt2-xl, mdlm-owt, sdtt:kld:7, sdtt:scaling:md:3, sdtt:teacher:1M, hub:OWNER/NAME"
        raise UserError(
            f"There is no checkpoint {path}, nor is it a published model ({names}). "
            + checkpoint_hint(os.path.dirname(path))
        )
    folder = path if os.path.isdir(path) else download(path)
    config, w = read_folder(folder)
    try:
        model_config, meta, dataset, weights = read_layout(folder, config, w)
        if model_config["vocab_size"] != meta["vocab_size"]:
            V = model_config["vocab_size"]
            raise UserError(f"its vocabulary is of {V} tokens, not of {meta['vocab_size']}")
    except DAMAGE as error:
        hint = ""
        if "architectures" in str(config):
            hint = " Did you mean hf:? It runs any model of transformers."
        why = first_line(error)
        raise UserError(f"{path} is no model that can be read here: {why}.{hint}") from None

    made_for = config.get("made_for")
    if str(path).startswith("sdtt:"):
        made_for = {"sampler": "ancestral"}
    return {
        "model_config": model_config,
        "model": weights,
        "ema": None,
        "meta": meta,
        "config": {"dataset": dataset},
        "made_for": made_for,
        "step": 0,
        "val_loss": None,
    }


def download(name):
    """A published name -> the folder of its files. Raises UserError without a network."""
    import huggingface_hub

    repository, revision = hub_address(name)
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    try:
        return huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=files
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        hint = "Put its model.safetensors and config.json into a folder and give that instead."
        why = first_line(error)
        raise UserError(
            f"Could not download {repository}, revision {revision} ({why}). {hint}"
        ) from None


def read_folder(folder):
    """-> the dict of its config.json, {key: tensor} of its model.safetensors."""
    try:
        config = data.read_json(os.path.join(folder, "config.json"))
        return config, safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        inside = data.matching("*.pt", folder)
        hint = f" Did you mean its {inside[-1]}?" if inside else ""
        why = str(error)[:100]
        raise UserError(
            f"{folder} holds no model.safetensors and config.json to be read ({why}).{hint}"
        ) from None


def read_layout(folder, config, w):
    """config.json, {key: tensor} -> model_config, meta, the dataset's name, weights as ours."""
    w = {re.sub(r"^(backbone\.|transformer\.)+", "", k): v.float() for k, v in w.items()}
    if "model_config" in config:  # our own
        meta = config["meta"]
        if meta["tokenizer"] == "json":
            meta["json"] = read_tokenizer(folder)
        return config["model_config"], meta, config["dataset"], w

    if "wpe.weight" in w:
        model_config, weights = from_gpt2(w, config)
    elif "vocab_embed.embedding" in w:
        model_config, weights = from_mdlm(w, config)
    else:
        first = min(w, default="missing")
        raise UserError(f"its first key is {first}, of no layout that is known")
    causal = model_config.get("causal", False)
    meta = vocabulary_of(folder, model_config["vocab_size"], config, causal)
    dataset = "openwebtext" if meta == data.GPT2_META else "text"
    return model_config, meta, dataset, weights


def read_tokenizer(folder):
    """-> the text of its tokenizer.json."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        return f.read()


def vocabulary_of(folder, V, config, causal):
    """
    -> the meta of a published model of V tokens: its tokenizer.json, GPT-2's, or else bare ids.
    Raises UserError if the tokenizer has other tokens than the model.
    """
    as_many_as_gpt2 = data.GPT2_META["vocab_size"] == V
    if not os.path.exists(os.path.join(folder, "tokenizer.json")):
        if as_many_as_gpt2:
            return data.GPT2_META
        print_once(f"{folder} has no tokenizer.json: a text is token ids, such as '3 1 4'.")
        return {"tokenizer": "ids", "vocab_size": V}

    text = read_tokenizer(folder)
    id_of = tokens_of(json.loads(text))
    check_tokens(id_of, V, causal)
    # the last pair that GPT-2 merges: another vocabulary of this size has another word there
    if as_many_as_gpt2 and id_of.get("\u0120gazed") == V - 2:
        return data.GPT2_META
    meta = {"tokenizer": "json", "vocab_size": V, "json": text}
    if config.get("eos_token_id") in range(V):
        meta["eot"] = config["eos_token_id"]
    return meta


def tokens_of(tokenizer):
    """A tokenizer.json -> {token: id}, with those that were added to its model's."""
    vocab = tokenizer["model"]["vocab"]  # {token: id}, or [[token, score], ...]
    if isinstance(vocab, list):
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    return vocab | added


def check_tokens(id_of, V, causal):
    """Raises UserError if a model of V tokens cannot write one, or has its [MASK] elsewhere."""
    last = max(id_of, key=id_of.get)
    largest = V - 1 if causal else V  # [MASK] is the token V of a diffusion model
    if id_of[last] > largest:
        raise UserError(
            f"the model has {V} tokens, but its tokenizer.json {last!r} as token {id_of[last]}"
        )
    for mask in ("[MASK]", "<mask>"):
        if not causal and id_of.get(mask, V) != V:
            raise UserError(
                f"its tokenizer.json has {mask} as token {id_of[mask]}; the last, {V}, was expected"
            )


# --------------------------------------------------------------------------------------------------
# the layouts


def settings_of(config, *keys):
    """Nested dicts -> the values that the keys have anywhere in them."""
    values = [value for key, value in config.items() if key in keys]
    for part in config.values():
        if isinstance(part, dict):
            values += settings_of(part, *keys)
    return values


def check_settings(config, **expected):
    """Raises UserError for a published setting that our block cannot follow."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UserError(f"{key} is {config[key]}, not {value}")


def from_gpt2(w, config):
    """-> model_config, weights. Its Conv1D holds (in, out) matrices, ours are (out, in)."""
    check_settings(config, activation_function="gelu_new", layer_norm_epsilon=1e-5)
    check_settings(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    new_names = {
        "h.": "blocks.",
        "c_attn": "qkv",
        "mlp.c_proj": "mlp.down",
        "c_proj": "proj",
        "c_fc": "up",
    }
    weights = {}
    for key, value in w.items():
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", key):
            continue  # a causal mask
        if key == "lm_head.weight" and torch.equal(value, w["wte.weight"]):
            continue  # tied, as here
        if key.startswith("h.") and value.dim() == 2:
            value = value.T
        for theirs, ours in new_names.items():
            key = key.replace(theirs, ours)
        weights[key] = value
    V, C = w["wte.weight"].shape
    model_config = {
        "vocab_size": V,
        "n_embd": C,
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "block_size": len(w["wpe.weight"]),
        "pos": "learned",
        "causal": True,
        "attn_bias": True,
        "mlp_bias": True,
        "ln_bias": True,
        "gelu_tanh": True,
    }
    return model_config, weights


def mdlm_shapes(V, C, L, E):
    """-> {key: shape} of MDLM's file: L blocks C wide, V tokens and [MASK], noise levels in E."""
    block = {
        "norm1.weight": (C,),
        "norm2.weight": (C,),
        "attn_qkv.weight": (3 * C, C),
        "attn_out.weight": (C, C),
        "mlp.0.weight": (4 * C, C),
        "mlp.0.bias": (4 * C,),
        "mlp.2.weight": (C, 4 * C),
        "mlp.2.bias": (C,),
        "adaLN_modulation.weight": (6 * C, E),
        "adaLN_modulation.bias": (6 * C,),
    }
    shapes = {
        "vocab_embed.embedding": (V + 1, C),
        "sigma_map.mlp.0.weight": (E, 256),
        "sigma_map.mlp.0.bias": (E,),
        "sigma_map.mlp.2.weight": (E, E),
        "sigma_map.mlp.2.bias": (E,),
        "output_layer.norm_final.weight": (C,),
        "output_layer.linear.weight": (V + 1, C),
        "output_layer.linear.bias": (V + 1,),
        "output_layer.adaLN_modulation.weight": (2 * C, E),
        "output_layer.adaLN_modulation.bias": (2 * C,),
    }
    for i in range(L):
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    return shapes


def check_shapes(w, expected):
    """Raises UserError at the first key that is missing, unknown or of another shape."""
    for key in sorted(expected.keys() | w.keys()):
        found = tuple(w[key].shape) if key in w else "missing"
        wanted = expected.get(key, "unknown")
        if found != wanted:
            raise UserError(f"{key} is {found}; {wanted} was expected")


def head_size(C, inv_freq, config):
    """-> channels of an attention head, from the rotary frequencies or the config."""
    if inv_freq is not None:
        heads = {C // (2 * len(inv_freq))}
    else:
        heads = set(settings_of(config, "n_heads"))
    if len(heads) != 1:
        found = sorted(heads) or "missing"
        raise UserError(f"n_heads is {found}, and no rotary_emb.inv_freq gives the size of a head")
    D = C // heads.pop()
    if inv_freq is not None:
        ours = 10000.0 ** (-torch.arange(0, D, 2) / D)
        if not torch.allclose(inv_freq, ours, rtol=1e-2):  # it may have been bfloat16
            raise UserError("rotary_emb.inv_freq is not of base 10000")
    return D


def linear64(w, name, x):
    """The linear layer of that name, in float64."""
    return F.linear(x, w[f"{name}.weight"].double(), w[f"{name}.bias"].double())


def from_mdlm(w, config):
    """
    -> model_config, weights. Without time conditioning the noise level that enters is always 0, so
    the adaptive layer norms of MDLM and SDTT are constants and fold into a plain pre-LN block.
    """
    if any(settings_of(config, "time_conditioning")):
        raise UserError("time_conditioning is True, and a plain block does not know the time")
    n_rows, C = w["vocab_embed.embedding"].shape
    V = n_rows - 1  # the last row is [MASK]
    E = w["sigma_map.mlp.0.weight"].size(0)
    L = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("blocks."))
    D = head_size(C, w.pop("rotary_emb.inv_freq", None), config)
    check_shapes(w, mdlm_shapes(V, C, L, E))

    # the embedding of noise level 0: 128 cosines of 0 and 128 sines of 0, through their MLP
    sigma = torch.cat([torch.ones(128), torch.zeros(128)]).double()
    c = F.silu(linear64(w, "sigma_map.mlp.2", F.silu(linear64(w, "sigma_map.mlp.0", sigma))))  # (E)
    weights = {"wte.weight": w["vocab_embed.embedding"]}
    for i in range(L):
        block = fold_block(w, f"blocks.{i}.", c)
        weights |= {f"blocks.{i}.{key}": value for key, value in block.items()}
    shift, scale = linear64(w, "output_layer.adaLN_modulation", c).view(2, C)
    weights["ln_f.weight"] = w["output_layer.norm_final.weight"] * (1 + scale)
    weights["ln_f.bias"] = shift
    weights["lm_head.weight"] = w["output_layer.linear.weight"][:V]  # [MASK] is never predicted
    weights["head_bias"] = w["output_layer.linear.bias"][:V]

    model_config = {
        "vocab_size": V,
        "n_embd": C,
        "n_layer": L,
        "n_head": C // D,
        # rope has tables, which must be long enough
        "block_size": max(settings_of(config, "model_length", "length"), default=1024),
        "causal": False,
        "tie_weights": False,
        "mlp_bias": True,
        "ln_bias": True,
        "head_bias": True,
        "gelu_tanh": True,
    }
    return model_config, {k: v.float().contiguous() for k, v in weights.items()}


def fold_block(w, at, c):
    """
    The block of MDLM whose keys begin with `at`, conditioned on the constant c (E) -> ours:
    norm(x) w (1 + scale) + shift is a LayerNorm with a bias, and a gate scales the rows of the
    matrix before it.
    """
    modulation = linear64(w, at + "adaLN_modulation", c)  # (6 C)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6)
    return {
        "ln_1.weight": w[at + "norm1.weight"] * (1 + scale_1),
        "ln_1.bias": shift_1,
        "attn.qkv.weight": w[at + "attn_qkv.weight"],  # rows [q | k | v], head after head, as here
        "attn.proj.weight": w[at + "attn_out.weight"] * gate_1[:, None],
        "ln_2.weight": w[at + "norm2.weight"] * (1 + scale_2),
        "ln_2.bias": shift_2,
        "mlp.up.weight": w[at + "mlp.0.weight"],
        "mlp.up.bias": w[at + "mlp.0.bias"],
        "mlp.down.weight": w[at + "mlp.2.weight"] * gate_2[:, None],
        "mlp.down.bias": w[at + "mlp.2.bias"] * gate_2,
    }


# --------------------------------------------------------------------------------------------------
# writing


def save_model(folder, model, checkpoint):
    """
    Writes model.safetensors, config.json and README.md, the model's card; with the vocabulary, so
    that the folder alone is enough. Raises UserError if it holds a model; a README.md stays.
    """
    if any(os.path.exists(os.path.join(folder, f)) for f in ("model.safetensors", "config.json")):
        raise UserError(f"{folder} holds a model or a config.json already. Give another folder.")
    if hasattr(model, "save"):
        model.save(folder)  # one of transformers has a layout of its own: hf:FOLDER loads it
        return
    meta = dict(checkpoint["meta"])
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    data.atomic_write(os.path.join(folder, "model.safetensors"), safetensors.torch.save(weights))
    if meta["tokenizer"] == "json":
        data.atomic_write(os.path.join(folder, "tokenizer.json"), meta.pop("json").encode())
    readme = os.path.join(folder, "README.md")
    if not os.path.exists(readme):
        data.atomic_write(readme, card(folder, model, checkpoint).encode())
    config = {
        "model_type": "nanosdtt",
        "model_config": dataclasses.asdict(model.config),
        "meta": meta,
        "dataset": checkpoint["config"]["dataset"],
        "made_for": checkpoint.get("made_for"),
    }
    data.write_json(os.path.join(folder, "config.json"), config)


def card(folder, model, checkpoint):
    """-> the README.md of a published model: what it is, its numbers, how to sample from it."""
    shape = model.config
    kind = shape.arch.upper() if shape.causal else "Masked diffusion language model"
    n_params = sum(p.numel() for p in model.parameters())
    size = f"{shape.n_layer} layers, {shape.n_embd} wide, context {shape.block_size}"
    name = os.path.basename(os.path.normpath(folder))
    rows = {
        "parameters": f"{n_params:,}: {size}",
        "vocabulary": f"{shape.vocab_size} tokens ({checkpoint['meta']['tokenizer']})",
        "trained on": os.path.basename(checkpoint["config"]["dataset"]),
    }
    if checkpoint["step"]:  # else others have published it
        by_rounds = checkpoint["config"].get("method") == "sdtt"
        rows["steps"] = f"{checkpoint['step']:,}" + (" in its round" if by_rounds else "")
        rows["validation loss"] = f"{checkpoint['val_loss']:.4f}, {unit_of_loss(model, checkpoint)}"
    made_for = checkpoint.get("made_for")
    if made_for:
        rows["made for"] = ", ".join(f"{key} {value}" for key, value in made_for.items())

    lines = ["---", "pipeline_tag: text-generation", "tags: [nanosdtt]", "---", ""]
    lines += [f"# {name}", "", f"{kind}, for nanoSDTT:", ""]
    lines += [f"    python sample.py --ckpt=hub:OWNER/{name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(lines) + "\n"


def unit_of_loss(model, checkpoint):
    """-> what the validation loss of a checkpoint is measured in."""
    method = checkpoint["config"].get("method")  # of its distillation, if there was one
    if method == "sdtt":
        return f"{checkpoint['config'].get('divergence')} to its teacher"
    if method:
        return "the loss of its distillation"
    return "nats per token" if model.config.causal else "nats per token, an upper bound"


def main(cfg):
    if not cfg.ckpt or not cfg.out:
        raise UserError("Which model, and where to? Give --ckpt=CHECKPOINT --out=FOLDER.")
    model, checkpoint = drafters.load_model(cfg.ckpt)
    save_model(cfg.out, model, checkpoint)
    print(f"The model is in {cfg.out}: --ckpt={cfg.out} loads it.")


if __name__ == "__main__":
    main(cfg)
