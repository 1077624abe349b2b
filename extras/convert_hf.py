"""
Any decoder of transformers becomes a masked diffusion model: the causal mask goes, [MASK] gets an
embedding, and loop.fit trains the diffusion loss.
$ python data/text/prepare.py --input=FILE --tokenizer=hf:HuggingFaceTB/SmolLM2-135M
$ python -m extras.convert_hf --model=hf:HuggingFaceTB/SmolLM2-135M@128 --dataset=text
$ python sample.py --ckpt=out/convert_hf/ckpt.pt --prompt='The capital of' --steps=32

A decoder has learned that position i predicts token i + 1. It goes on doing so (as in DiffuLLaMA,
Gong et al. 2024, arXiv 2410.17891): a start token goes before the text, and the state of each
position predicts the next one. pip install 'transformers>=5.24,<6'.
"""

import functools

import torch

import data
from configurator import UserError, choose, configure, print_once, save_config
from extras.huggingface import HuggingFaceModel, about, has_encoder, name_and_context
from loop import check_loop, fit, hooks, validator
from model import diffusion_loss, nelbo
from plumbing.checkpoints import load_weights, weights_of, without_weights
from plumbing.parallel import is_first_process, join_processes, leave_processes
from plumbing.runs import check_unused, checkpoint_to_resume, claim, release, to_resume

# --------------------------------------------------------------------------------------------------
model = "hf:HuggingFaceTB/SmolLM2-135M@128"  # a decoder, hf:NAME_OR_FOLDER@TOKENS of a text
dataset = ""  # a name under data/, or a folder, in this model's vocabulary
out_dir = "out/convert_hf"
init_from = "model"  # 'model' | 'resume' (out_dir)
t_weight = 0.5  # a: noise t has weight (2 - a) / t^a; 1 is the bound, 0.5 learns faster
# optimizer: AdamW
max_iters = 1000  # optimizer steps
batch_size = 8  # sequences per forward pass, on each process
gradient_accumulation_steps = 1  # forward passes per step, over all processes
learning_rate = 1e-4
warmup_iters = 20  # steps, linear, up to learning_rate
min_lr = 0.1  # fraction of learning_rate at the end of a cosine; 1: constant
weight_decay = 0.1  # of matrices
beta2 = 0.99  # beta1 is 0.9
grad_clip = 1.0  # gradient norm; 0: off
ema = 0.0  # decay of the averaged weights, which are validated and sampled; 0: off
# the run
eval_interval = 100  # steps between validations, which save the checkpoint
eval_iters = 8  # validation batches
sample_interval = 0  # steps between printed samples, a multiple of eval_interval; 0: none
seed = 1337
device = ""  # '' (cuda, else mps, else cpu) | 'cuda' | 'mps' | 'cpu' | one GPU, as 'cuda:1'
dtype = ""  # '' (16 bits if they are fast here) | 'float32' | 'bfloat16' | 'float16'
attention = "sdpa"  # 'sdpa' | 'manual' (readable) | 'flash_attn' (if installed, cuda)
wandb = ""  # a project name: also log to Weights & Biases
cfg = configure(globals())
# --------------------------------------------------------------------------------------------------


class DiffusionDecoder(HuggingFaceModel):
    """Llama, Qwen, ... with a GPT's hidden and head, and without a direction."""

    def __init__(self, path, attention="sdpa"):
        super().__init__(path, attention)
        self.config.causal = False
        self.config.block_size -= len(self.alone)  # which take a position
        V = self.config.vocab_size
        self.mask_id = V
        if self.wte.num_embeddings == V:  # else it has rows without a token, and the head too
            self.inner.resize_token_embeddings(V + 1, mean_resizing=False)
            self.lm_head = self.inner.get_output_embeddings()
        # as in model.convert the mean: a token about which nothing is known (the head's is unused)
        for rows in (self.lm_head.weight.data, self.wte.weight.data):
            rows[V] = rows[:V].mean(0)
        self.take_head_out()
        self.check_directions()

    def hidden(self, idx):
        """(B, T) int64 -> (B, T, C), before the head."""
        self.check_length(idx.size(1))
        B, T = idx.shape
        before = idx.new_tensor(self.alone).expand(B, -1)  # (B, n), n = 1 as a rule
        x = torch.cat([before, idx], dim=1)  # (B, n + T)
        # added to the scores: every position sees every other
        mask = self.wte.weight.new_zeros(1, 1, x.size(1), x.size(1))
        h = self.inner(input_ids=x, attention_mask=mask, use_cache=False).logits
        return h[:, -T - 1 : -1]  # the state of the token before each

    def forward(self, idx):
        """(B, T) int64 -> (B, T, V) logits."""
        return self.head(self.hidden(idx))

    @torch.no_grad()
    def check_directions(self):
        """Raises UserError for a model that does not look ahead, whatever mask it is given."""
        x = torch.arange(8)[None] % self.config.vocab_size  # (1, 8)
        other = x.clone()
        other[0, -1] = self.mask_id
        if torch.equal(self.hidden(x)[0, 0], self.hidden(other)[0, 0]):
            raise UserError(f"{self.config.arch} stays causal under a full mask: not supported.")


def from_checkpoint(saved, device="cpu", attention="sdpa"):
    """What a training here saved -> model in eval mode, and the checkpoint without its weights."""
    model = DiffusionDecoder(saved["model_config"]["arch"], attention)
    load_weights(model, weights_of(saved))
    return model.to(device), without_weights(saved)


def check_dataset(cfg, corpus, model):
    """Raises UserError for a dataset that the model cannot learn from."""
    if not data.same_vocabulary(corpus.meta, about(cfg.model)["meta"]):
        name = name_and_context(cfg.model)[0]
        raise UserError(
            f"{cfg.dataset} has another vocabulary than {cfg.model}: "
            f"data/text/prepare.py --tokenizer=hf:{name} writes it in the model's."
        )
    if min(len(corpus.train), len(corpus.val)) <= model.config.block_size:
        n = model.config.block_size
        raise UserError(f"{cfg.dataset} has parts of less than a context, {n} tokens: too short.")


def train(cfg):
    cfg.compile = "off"  # it compiles our own blocks only, and FSDP shards them only
    cfg.fsdp = False
    cfg.dropout = 0.0
    check_loop(cfg)
    choose("init_from", cfg.init_from, ("model", "resume"))
    if cfg.init_from == "resume":
        to_resume(cfg.out_dir, "ckpt.pt")
    else:
        check_unused(cfg.out_dir)
    if not cfg.model.startswith("hf:") or has_encoder(cfg.model):
        raise UserError(f"model is {cfg.model!r}; it must be a decoder, hf:NAME_OR_FOLDER@TOKENS.")
    device, note = join_processes(cfg)
    corpus = data.load(cfg.dataset)
    model = DiffusionDecoder(cfg.model, cfg.attention)
    check_dataset(cfg, corpus, model)
    saved = checkpoint_to_resume(cfg)
    if saved:
        load_weights(model, saved["model"])
    model = model.to(device)
    if is_first_process():
        claim(cfg.out_dir)
        save_config(cfg, cfg.out_dir)
    T = model.config.block_size
    print_once(f"{cfg.model} learns to fill in texts of {T} tokens, on {note}")

    loss = functools.partial(diffusion_loss, t_weight=cfg.t_weight)
    get_batch = functools.partial(data.batch, corpus.train, cfg.batch_size, T)
    validate = validator(nelbo, corpus, T, cfg, device)
    on_eval, save = hooks(model, validate, cfg, corpus.meta)
    fit(model, loss, get_batch, cfg, on_eval, save, saved)


def main(cfg):
    try:
        train(cfg)
    finally:
        release(cfg.out_dir)
    leave_processes()


if __name__ == "__main__":
    main(cfg)
