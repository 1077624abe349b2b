# drafters.py:NGram.__call__, exercise 13: the context of place i ends with token i + 1, which is to be predicted


def __call__(self, idx):
    contexts = F.pad(idx.cpu(), (self.n - 2, 1), value=-1).unfold(1, self.n - 1, 1)[
        :, 1:
    ]  # (B, T, n - 1)
    return self.log_probs(contexts.flatten(0, 1).numpy()).view(*idx.shape, -1).to(idx.device)
