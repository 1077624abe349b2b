"""
Published models: GPT-2, MDLM, SDTT, and folders of our own. Data only: nothing from a hub is ever executed.
"""

import dataclasses
import functools
import json
import os
import re

import safetensors.torch
import torch
import torch.nn.functional as F

import data
from configurator import UserError, first_line, print_once

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


def hub_address(name):
    """A published name -> repository and revision, or None. hub:OWNER/NAME[@REVISION] is any other one."""
    for pattern, address in PUBLISHED.items():
        match = re.fullmatch(pattern, str(name))
        if match:
            return [match.expand(part) for part in address]


def folder_of(name):
    """A published name -> the folder that its files are downloaded to. Raises UserError without a network."""
    import huggingface_hub

    repository, revision = hub_address(name)
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    try:
        return huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=files
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        mend = "Put its model.safetensors and config.json into a folder and give that instead."
        raise UserError(
            f"Could not download {repository}, revision {revision} ({first_line(error)}). {mend}"
        ) from None


def read_folder(folder):
    """-> the dict of its config.json, {key: tensor} of its model.safetensors. Raises UserError if one is damaged."""
    try:
        config = data.read_json(os.path.join(folder, "config.json"))
        return config, safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        inside, why = data.matching("*.pt", folder), str(error)[:100]
        hint = f" Did you mean its {inside[-1]}?" if inside else ""
        raise UserError(
            f"{folder} holds no model.safetensors and config.json to be read ({why}).{hint}"
        ) from None


def load_published(name):
    """A published name or a folder with model.safetensors and config.json -> a dict like load_checkpoint's.

    Raises UserError for files that are of no layout that is known.
    """
    folder = name if os.path.isdir(name) else folder_of(name)
    config, w = read_folder(folder)
    w = {re.sub(r"^(backbone\.|transformer\.)+", "", k): v.float() for k, v in w.items()}
    try:
        if "model_config" in config:  # our own
            model_config, meta, dataset = config["model_config"], config["meta"], config["dataset"]
            if meta["tokenizer"] == "json":
                meta["json"] = read_tokenizer(folder)
        elif "vocab_embed.embedding" in w or "wpe.weight" in w:
            model_config, w = (from_gpt2 if "wpe.weight" in w else from_mdlm)(w, config)
            meta = vocabulary_of(
                folder, model_config["vocab_size"], config, model_config.get("causal", False)
            )
            dataset = "openwebtext" if meta == data.GPT2_META else "text"
        else:
            raise UserError(
                f"its first key is {min(w, default='missing')}, of no layout that is known"
            )
        if model_config["vocab_size"] != meta["vocab_size"]:
            raise UserError(
                f"vocabulary of {model_config['vocab_size']}, not of {meta['vocab_size']}"
            )
    except (
        UserError,
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        hint = (
            " Did you mean hf:? It runs any model of transformers."
            if "architectures" in str(config)
            else ""
        )
        raise UserError(
            f"{name} is no model that can be read here: {first_line(error)}.{hint}"
        ) from None
    about = {
        "model_config": model_config,
        "meta": meta,
        "config": {"dataset": dataset},
        "step": 0,
        "val_loss": None,
    }
    made_for = {"sampler": "ancestral"} if str(name).startswith("sdtt:") else config.get("made_for")
    return about | {"model": w, "ema": None, "made_for": made_for}


def read_tokenizer(folder):
    """-> the text of its tokenizer.json."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        return f.read()


def vocabulary_of(folder, V, config, causal):
    """-> the meta of a published model of V tokens: its tokenizer.json, GPT-2's, or else bare ids.

    Not causal: [MASK] is the token V. Raises UserError if the tokenizer has other tokens than the model.
    """
    of_gpt2 = data.GPT2_META["vocab_size"] == V
    if not os.path.exists(os.path.join(folder, "tokenizer.json")):
        if of_gpt2:
            return data.GPT2_META
        print_once(
            f"{folder} has {V} tokens and no tokenizer.json: a text is token ids, such as '3 1 4'."
        )
        return {"tokenizer": "ids", "vocab_size": V}
    text = read_tokenizer(folder)
    about = json.loads(text)
    tokens = about["model"]["vocab"]  # {token: id}, or [[token, score], ...]
    tokens = (
        dict(tokens)
        if isinstance(tokens, dict)
        else {token: i for i, (token, _) in enumerate(tokens)}
    )
    tokens |= {added["content"]: added["id"] for added in about.get("added_tokens") or []}
    last, masks = (
        max(tokens, key=tokens.get),
        () if causal else {"[MASK]", "<mask>"} & tokens.keys(),
    )
    if tokens[last] > V - causal:
        raise UserError(
            f"the model has {V} tokens, but its tokenizer.json {last!r} as token {tokens[last]}"
        )
    for mask in masks:
        if tokens[mask] != V:
            raise UserError(
                f"its tokenizer.json has {mask} as token {tokens[mask]}; the last, {V}, was expected"
            )
    if of_gpt2 and tokens.get("\u0120gazed") == V - 2:  # the last pair that GPT-2 merges
        return data.GPT2_META
    eot = {"eot": config["eos_token_id"]} if config.get("eos_token_id") in range(V) else {}
    return {"tokenizer": "json", "vocab_size": V, "json": text, **eot}


def refuse_used_export(folder, arch="gpt"):
    """'' is no folder. Raises UserError if it has a model, or if the model to be trained is no network."""
    if folder and arch == "ngram":
        raise UserError(
            "An ngram is a readable file already, out_dir/ngram.txt: --export is for networks."
        )
    if folder and any(
        os.path.exists(os.path.join(folder, name)) for name in ("model.safetensors", "config.json")
    ):
        raise UserError(
            f"{folder} holds a model or a config.json already. Export to another folder."
        )


def save_published(folder, model, checkpoint):
    """Writes model.safetensors and config.json, which load_model(folder) reads, and README.md, the model's card.

    With the vocabulary, in config.json or tokenizer.json: the folder alone is enough. Raises UserError if they exist;
    a README.md that is there stays.
    """
    refuse_used_export(folder)
    if hasattr(model, "save"):
        return model.save(folder)  # of transformers: hf:FOLDER loads it
    path, about = os.path.join(folder, "model.safetensors"), os.path.join(folder, "config.json")
    meta = dict(checkpoint["meta"])
    if meta["tokenizer"] == "json":
        data.atomic_write(os.path.join(folder, "tokenizer.json"), meta.pop("json").encode())
    config = {"model_type": "nanosdtt", "model_config": dataclasses.asdict(model.config)}
    config |= {
        "meta": meta,
        "dataset": checkpoint["config"]["dataset"],
        "made_for": checkpoint.get("made_for"),
    }
    data.write_json(about, config)
    if not os.path.exists(os.path.join(folder, "README.md")):
        data.atomic_write(
            os.path.join(folder, "README.md"), card(folder, model, checkpoint).encode()
        )
    data.atomic_write(
        path,
        safetensors.torch.save({k: v.cpu().contiguous() for k, v in model.state_dict().items()}),
    )


def card(folder, model, checkpoint):
    """-> the README.md of a published model: what it is, its numbers, the command that samples from it."""
    shape, was, made_for = model.config, checkpoint["config"], checkpoint.get("made_for") or {}
    kind = shape.arch.upper() if shape.causal else "Masked diffusion language model"
    n, name = sum(p.numel() for p in model.parameters()), os.path.basename(os.path.normpath(folder))
    rows = {
        "parameters": f"{n:,}: {shape.n_layer} layers, {shape.n_embd} wide, context {shape.block_size}"
    }
    rows["vocabulary"] = f"{shape.vocab_size} tokens ({checkpoint['meta']['tokenizer']})"
    rows["trained on"] = os.path.basename(was["dataset"])
    if checkpoint["step"]:  # else it was published by others
        own = {
            "sdtt": f"{was.get('divergence')} to its teacher",
            "kd": "the loss of its distillation",
        }
        own["dimo"] = "a KL of its texts from its teacher's"
        unit = own.get(
            was.get("method"),
            "nats per token" if shape.causal else "nats per token, an upper bound",
        )
        rows["steps"] = f"{checkpoint['step']:,}" + (
            " in its round" if was.get("method") == "sdtt" else ""
        )
        rows["validation loss"] = f"{checkpoint['val_loss']:.4f}, {unit}"
    if made_for:
        rows["made for"] = ", ".join(f"{key} {value}" for key, value in made_for.items())
    lines = ["---", "pipeline_tag: text-generation", "tags: [nanosdtt]", "---", "", f"# {name}", ""]
    lines += [
        f"{kind}, for nanoSDTT:",
        "",
        f"    python sample.py --ckpt=hub:OWNER/{name}",
        "",
        "| | |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items()), ""])


def settings_of(config, *keys):
    """Nested dicts -> the values that the keys have anywhere in them."""
    own = [value for key, value in config.items() if key in keys]
    return own + [
        v for part in config.values() if isinstance(part, dict) for v in settings_of(part, *keys)
    ]


def refuse_unless(config, **values):
    """Published settings that our block cannot follow."""
    for key, value in values.items():
        if config.get(key, value) != value:
            raise UserError(f"{key} is {config[key]}, not {value}")


def from_gpt2(w, config):
    """-> model_config, weights. Its Conv1D holds (in, out) matrices, ours are (out, in)."""
    refuse_unless(config, activation_function="gelu_new", layer_norm_epsilon=1e-5)
    refuse_unless(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    new = {
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
            continue
        matrix = key.startswith("h.") and value.dim() == 2
        weights[functools.reduce(lambda k, pair: k.replace(*pair), new.items(), key)] = (
            value.T if matrix else value
        )
    V, C = w["wte.weight"].shape
    shape = dict(
        vocab_size=V, n_embd=C, block_size=len(w["wpe.weight"]), pos="learned", causal=True
    )
    biases = dict(attn_bias=True, mlp_bias=True, ln_bias=True, gelu_tanh=True)
    return {**shape, **biases, "n_layer": config["n_layer"], "n_head": config["n_head"]}, weights


def mdlm_shapes(V, C, L, E):
    """-> {key: shape} of MDLM's file: L blocks C wide, V tokens and the mask, noise levels embedded in E numbers."""

    def ada(n):
        return {"adaLN_modulation.weight": (n * C, E), "adaLN_modulation.bias": (n * C,)}

    block = {
        "norm1.weight": (C,),
        "norm2.weight": (C,),
        "attn_qkv.weight": (3 * C, C),
        "attn_out.weight": (C, C),
    }
    block |= {
        "mlp.0.weight": (4 * C, C),
        "mlp.0.bias": (4 * C,),
        "mlp.2.weight": (C, 4 * C),
        "mlp.2.bias": (C,),
    }
    output = {"norm_final.weight": (C,), "linear.weight": (V + 1, C), "linear.bias": (V + 1,)}
    shapes = {
        "vocab_embed.embedding": (V + 1, C),
        "sigma_map.mlp.0.weight": (E, 256),
        "sigma_map.mlp.0.bias": (E,),
    }
    shapes |= {"sigma_map.mlp.2.weight": (E, E), "sigma_map.mlp.2.bias": (E,)}
    shapes |= {f"blocks.{i}.{k}": s for i in range(L) for k, s in (block | ada(6)).items()}
    shapes |= {f"output_layer.{k}": s for k, s in (output | ada(2)).items()}
    return shapes


def from_mdlm(w, config):
    """-> model_config, weights. The adaptive layer norms of MDLM and SDTT are folded into a plain pre-LN block.

    Without time conditioning the noise level that enters is always 0, and what the adaLN layers make of it constant:
    norm(x) w (1 + scale) + shift is a LayerNorm with a bias, and a gate scales the rows of the matrix before it.
    """
    if any(settings_of(config, "time_conditioning")):
        raise UserError("time_conditioning is True, and a plain block does not know the time")
    # 1. The shape, from the weights themselves
    (V, C), E = w["vocab_embed.embedding"].shape, w["sigma_map.mlp.0.weight"].size(0)
    V, L = (
        V - 1,
        1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks.")),
    )  # the last row is [MASK]
    freq = w.pop("rotary_emb.inv_freq", None)
    heads = {C // (2 * len(freq))} if freq is not None else set(settings_of(config, "n_heads"))
    if len(heads) != 1:
        raise UserError(
            f"n_heads is {sorted(heads) or 'missing'}, and no rotary_emb.inv_freq tells the size of a head"
        )
    D = C // heads.pop()
    if freq is not None and not torch.allclose(
        freq, 10000.0 ** (-torch.arange(0, D, 2) / D), rtol=1e-2
    ):  # bfloat16?
        raise UserError("rotary_emb.inv_freq is not of base 10000")
    shapes = mdlm_shapes(V, C, L, E)
    for key in sorted(shapes.keys() | w.keys()):
        here, wanted = tuple(w[key].shape) if key in w else "missing", shapes.get(key, "unknown")
        if here != wanted:
            raise UserError(f"{key} is {here}; {wanted} was expected")

    # 2. What the adaptive layers say at noise level 0, whose embedding is 128 cosines of 0 and 128 sines of 0
    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"].double(), w[f"{name}.bias"].double())

    sigma = torch.cat([torch.ones(128), torch.zeros(128)]).to(w["vocab_embed.embedding"]).double()
    c = F.silu(linear(F.silu(linear(sigma, "sigma_map.mlp.0")), "sigma_map.mlp.2"))  # (E)
    # 3. Fold it in: (1 + scale) into the norm's weight, shift as its bias, the gate into the rows of the last matrix
    weights = {"wte.weight": w["vocab_embed.embedding"]}
    for i in range(L):
        at = f"blocks.{i}."
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear(
            c, at + "adaLN_modulation"
        ).view(6, C)
        weights[at + "ln_1.weight"], weights[at + "ln_1.bias"] = (
            w[at + "norm1.weight"] * (1 + scale_1),
            shift_1,
        )
        weights[at + "ln_2.weight"], weights[at + "ln_2.bias"] = (
            w[at + "norm2.weight"] * (1 + scale_2),
            shift_2,
        )
        weights[at + "attn.qkv.weight"] = w[
            at + "attn_qkv.weight"
        ]  # rows [q | k | v], head after head, as here
        weights[at + "attn.proj.weight"] = w[at + "attn_out.weight"] * gate_1[:, None]
        weights[at + "mlp.up.weight"], weights[at + "mlp.up.bias"] = (
            w[at + "mlp.0.weight"],
            w[at + "mlp.0.bias"],
        )
        weights[at + "mlp.down.weight"] = w[at + "mlp.2.weight"] * gate_2[:, None]
        weights[at + "mlp.down.bias"] = w[at + "mlp.2.bias"] * gate_2
    shift, scale = linear(c, "output_layer.adaLN_modulation").view(2, C)
    weights["ln_f.weight"], weights["ln_f.bias"] = (
        w["output_layer.norm_final.weight"] * (1 + scale),
        shift,
    )
    weights["lm_head.weight"] = w["output_layer.linear.weight"][
        :V
    ]  # the row for [MASK] is never used
    weights["head_bias"] = w["output_layer.linear.bias"][:V]
    shape = dict(vocab_size=V, n_embd=C, n_layer=L, n_head=C // D)
    shape["block_size"] = max(
        settings_of(config, "model_length", "length"), default=1024
    )  # rope needs the longest
    switches = dict(tie_weights=False, mlp_bias=True, ln_bias=True, head_bias=True, gelu_tanh=True)
    return shape | switches, {k: v.float().contiguous() for k, v in weights.items()}
