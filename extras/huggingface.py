"""
Any decoder-only model that `transformers` runs, as target, drafter, teacher or evaluator: the name
hf:NAME_OR_FOLDER, or hf:NAME@4096 to read texts of 4096 tokens instead of 1024.
$ python sample.py --ckpt=hf:Qwen/Qwen2.5-7B --draft=hf:Qwen/Qwen2.5-0.5B --prompt='The capital of'
$ python distill.py config/kd_shakespeare_char.py --teacher=hf:A --drafter=hf:B --dataset=MY_FOLDER

What was trained here becomes a folder of transformers, which hf:FOLDER loads:
$ python -m extras.huggingface --ckpt=out/drafter/ckpt.pt --out=out/drafter_hf

pip install 'transformers>=5.24,<6'. Safetensors only, no code of a model is ever executed. The
weights are float32; on a GPU that computes in bfloat16, those of targets, drafters and teachers are
bfloat16 (not in eval.py). float16 is not used: activations may be too large for it.
Encoder-decoders (T5) are in extras/t5.py.
"""

import contextlib
import dataclasses
import importlib.util
import os

import torch
import torch.nn as nn

from configurator import UserError, choose, configure
from data import from_hub, hf_config, hf_meta, hf_tokenizer, opening_of
from plumbing.checkpoints import load_checkpoint, load_weights, weights_of, without_weights
from plumbing.head import float32_linear

# --------------------------------------------------------------------------------------------------
ckpt = ""  # a checkpoint of a model of transformers that was trained here
out = ""  # a new folder, for the model and its tokenizer
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------

# tokens of a text, where hf:NAME@TOKENS does not say: all that a model can read would fill any
# memory
CONTEXT = 1024
# our name -> that of transformers; None: as it chooses
ATTENTION_IMPLEMENTATIONS = {"sdpa": None, "manual": "eager", "flash_attn": "flash_attention_2"}
# that two ways to the same numbers may differ by, relative to the largest
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


@dataclasses.dataclass
class HuggingFaceConfig:
    """What of a GPTConfig the callers of a model look at."""

    arch: str  # 'hf:NAME_OR_FOLDER' or 'hf:NAME_OR_FOLDER@TOKENS'
    vocab_size: int  # V: the tokens of its tokenizer, without the rows that pad the head
    n_embd: int  # C, of what enters the head
    block_size: int  # longest text, in tokens
    causal: bool = True
    dropout: float = 0.0


def name_and_context(path):
    """'hf:NAME' or 'hf:NAME@TOKENS' -> NAME, the longest text that is asked for."""
    name, at, context = path[3:].rpartition("@")
    if at and context.isdigit():
        return name, int(context)
    return path[3:], CONTEXT


def config_of(path):
    """'hf:NAME_OR_FOLDER' -> HuggingFaceConfig."""
    name, context = name_and_context(path)
    text = hf_config(name).get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None)
    if longest:  # T5 has none
        context = min(longest - len(opening_of(name)[0]), context)
    return HuggingFaceConfig(
        arch=path,
        vocab_size=hf_meta(name)["vocab_size"],
        n_embd=text.hidden_size,
        block_size=context,
    )


def check_flash(path, dtype):
    """Raises UserError where flash-attn is missing, and for weights that it does not take."""
    if not importlib.util.find_spec("flash_attn"):
        raise UserError("attention is 'flash_attn': pip install flash-attn, or use 'sdpa'.")
    if dtype == torch.float32:
        raise UserError(
            f"flash_attn has no float32, and the weights of {path} are: --attention=sdpa."
        )


# --------------------------------------------------------------------------------------------------
# the model


class HuggingFaceModel(nn.Module):
    """
    What decoders and encoder-decoders have in common.

    The head is taken out of the inner model: what that then calls its logits is what enters the
    head, scaled as it should be.
    DIFFERS from a training in transformers: always in eval mode, without dropout.
    """

    kind = "AutoModelForCausalLM"

    def __init__(self, path, attention="sdpa", dtype=torch.float32):
        super().__init__()
        choose("attention", attention, ATTENTION_IMPLEMENTATIONS)
        self.attention = attention
        if attention == "flash_attn":
            check_flash(path, dtype)
            attention = "sdpa"  # in which a CPU checks the model; see use_flash
        self.config = config_of(path)
        self.mask_id = None
        name, _ = name_and_context(path)
        self.opening, self.alone = opening_of(name)
        self.inner = from_hub(
            self.kind,
            name,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=ATTENTION_IMPLEMENTATIONS[attention],
        ).eval()
        self.lm_head = self.inner.get_output_embeddings()

    @property
    def wte(self):
        return self.inner.get_input_embeddings()

    def head(self, h):
        """(..., C) -> (..., V) logits, in float32 under autocast, too."""
        logits = float32_linear(h, self.lm_head.weight, self.lm_head.bias)
        return logits[..., : self.config.vocab_size]

    def train(self, mode=True):
        return self

    def without_float16(self):
        """
        -> a context in which autocast leaves float16 out: activations of models that are published
        in bfloat16 may be too large for it.
        """
        kind = self.wte.weight.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            return torch.autocast(kind, enabled=False)
        return contextlib.nullcontext()

    def use_flash(self):
        """After the checks, which run on a CPU: that has no flash-attn."""
        if self.attention == "flash_attn":
            self.inner.set_attn_implementation("flash_attention_2")

    def take_head_out(self):
        self.inner.set_output_embeddings(nn.Identity())

    def check_length(self, n):
        """Raises UserError if n tokens are too many."""
        size = self.config.block_size
        if n > size:
            raise UserError(f"{n} tokens are more than the context of {size}: see hf:NAME@TOKENS.")

    def check_cache(self, cache):
        """A cache of transformers that was filled. Raises UserError if it can't forget tokens."""
        kinds = {type(layer).__name__ for layer in getattr(cache, "layers", [cache])}
        if kinds != {"DynamicLayer"}:
            kinds = ", ".join(sorted(kinds))
            raise UserError(f"{self.config.arch} remembers by {kinds}, which cannot forget drafts.")

    def check_equal(self, what, a, b):
        """Raises UserError if two ways to the same numbers differ by more than rounding."""
        if (a - b).abs().max() > ROUNDING[self.inner.dtype] * b.abs().max():
            raise UserError(
                f"{self.config.arch} makes its {what} in a way of its own: not supported."
            )

    def state_dict(self, **kw):
        """Without the second names of tied weights."""
        weights = super().state_dict(**kw)
        return {name: weights[name] for name, _ in self.named_parameters()}

    def load_state_dict(self, weights):
        return super().load_state_dict(weights, strict=False)  # state_dict has no second names

    def save(self, folder):
        """Writes a new folder -> the name that loads it. Raises UserError if it is there."""
        check_new(folder)
        folder = os.path.normpath(folder)  # without a / at its end
        self.inner.set_output_embeddings(self.lm_head)
        self.inner.save_pretrained(f"{folder}.tmp")
        self.take_head_out()
        hf_tokenizer(name_and_context(self.config.arch)[0]).save_pretrained(f"{folder}.tmp")
        os.replace(f"{folder}.tmp", folder)
        return f"hf:{folder}"


class Decoder(HuggingFaceModel):
    """Llama, Qwen, GPT-2, ...: with a GPT's hidden, head and cache."""

    def __init__(self, path, attention="sdpa", dtype=torch.float32):
        super().__init__(path, attention, dtype)
        self.eot = hf_meta(name_and_context(path)[0]).get("eot", -1)
        self.check_and_take_head_out()
        self.use_flash()

    def opened(self, idx):
        """
        (B, T) int64, the beginnings of texts -> (B, T') int64, as the model has learned to read
        them: with the BOS that its tokenizer puts before a text, instead of an end-of-text before
        it. Without a BOS many models predict next to nothing.
        """
        first = idx[:, 0]
        if self.opening and (first == self.opening[0]).all():  # a chat template has it
            return idx
        before = self.opening
        if (first == self.eot).all():  # what a text of ours begins after: see data.start_token
            before = self.alone
            idx = idx[:, 1:]
        before = idx.new_tensor(before).expand(len(idx), -1)  # (B, a few)
        return torch.cat([before, idx], dim=1)

    def hidden(self, idx, cache=None):
        """(B, T) int64 -> (B, T, C), before the head. idx follow the cached tokens, if any."""
        T = idx.size(1)
        if cache is None:
            self.check_length(T)
            with self.without_float16():
                return self.inner(input_ids=self.opened(idx), use_cache=False).logits[:, -T:]
        end = cache.length + T
        self.check_length(end)
        if cache.length == 0:
            idx = self.opened(idx)
            cache.n_opening = idx.size(1) - T
        with self.without_float16():
            h = self.inner(input_ids=idx, use_cache=True, cache=cache.cropped()).logits
        cache.length = end
        return h[:, -T:]

    def forward(self, idx):
        """(B, T) int64 -> (B, T, V) logits."""
        return self.head(self.hidden(idx))

    def new_cache(self, batch_size=1):
        import transformers

        return Cache(transformers.DynamicCache())

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # which would round only one of the two ways
    def check_and_take_head_out(self):
        """
        Raises UserError for a model whose logits are not the head's alone (soft-capped ones), and
        for one whose cache can't forget tokens (linear attention, sliding windows).
        """
        x = torch.arange(8)[None] % self.config.vocab_size  # (1, 8)
        found = self.inner(input_ids=self.opened(x), use_cache=True)
        self.check_cache(getattr(found, "cache", None))
        self.take_head_out()
        h = self.hidden(x)
        self.check_equal("logits", self.head(h), found.logits[:, -8:, : self.config.vocab_size])
        cache = self.new_cache()
        self.hidden(x[:, :7], cache)
        cache.length = 5
        self.check_equal("cached states", self.hidden(x[:, 5:], cache), h[:, 5:])


class Cache:
    """A cache of transformers as a KVCache: to forget tokens, lower `length`."""

    def __init__(self, cache):
        self.cache = cache
        self.length = 0  # all rows are equally long
        self.n_opening = 0  # tokens more than those, before them

    def cropped(self):
        """-> the cache of transformers, of the first `length` tokens."""
        length = self.length + self.n_opening if self.length else 0
        self.cache.crop(length - self.cache.get_seq_length())  # minus how many tokens go
        return self.cache


# --------------------------------------------------------------------------------------------------
# loading and saving


def check_new(folder):
    """Raises UserError unless it is the name of a folder that is not there."""
    if not folder or os.path.exists(folder):
        raise UserError(f"out is {folder!r}. Name a new folder: --out=FOLDER")


def about(path):
    """'hf:NAME_OR_FOLDER' -> what the checkpoint of a model of ours tells of it."""
    return {
        "config": {"dataset": ""},
        "meta": hf_meta(name_and_context(path)[0]),
        "made_for": None,
        "step": 0,
        "val_loss": None,
    }


def has_encoder(path):
    """Whether 'hf:NAME_OR_FOLDER' is an encoder-decoder."""
    return hf_config(name_and_context(path)[0]).is_encoder_decoder


def check_decoder(path):
    """Raises UserError if 'hf:NAME_OR_FOLDER' is an encoder-decoder."""
    if has_encoder(path):
        raise UserError(f"{path} is an encoder-decoder. It runs with: python -m extras.t5")


def load_model(path, device="cpu", attention="sdpa", dtype=torch.float32):
    """'hf:NAME_OR_FOLDER' -> model in eval mode, and what a checkpoint would tell of it."""
    check_decoder(path)
    return Decoder(path, attention, dtype).to(device), about(path)


def from_checkpoint(saved, device="cpu", attention="sdpa", dtype=torch.float32):
    """What a training here saved of a model of transformers -> as load_model."""
    path = saved["model_config"]["arch"]
    check_decoder(path)
    if not saved["model_config"]["causal"]:
        from extras import convert_hf  # which imports this file

        return convert_hf.from_checkpoint(saved, device, attention)
    model = Decoder(path, attention, dtype)
    load_weights(model, weights_of(saved))
    return model.to(device), without_weights(saved)


def main(cfg):
    from extras import t5  # not above: it imports this file

    check_new(cfg.out)
    saved = load_checkpoint(cfg.ckpt)
    arch = str(saved["model_config"].get("arch"))
    if not arch.startswith("hf:"):
        raise UserError(f"{cfg.ckpt} is no model of transformers: its arch is {arch!r}.")
    if not saved["model_config"]["causal"]:
        raise UserError(f"{cfg.ckpt} is a diffusion model, which transformers would run causally.")
    loader = t5.from_checkpoint if has_encoder(arch) else from_checkpoint
    model, _ = loader(saved)
    name = model.save(cfg.out)
    print(f"The model is in {cfg.out}: load it as {name}")


if __name__ == "__main__":
    main(cfg)
