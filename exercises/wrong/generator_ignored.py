# model.py:stratified, exercise 2: other numbers in every run, whatever the seed


def stratified(B, generator, device):
    offset = torch.rand(1)
    return ((offset + torch.arange(B, device=device) / B) % 1)[:, None]
