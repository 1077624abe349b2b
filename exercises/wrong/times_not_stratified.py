# model.py:stratified, exercise 2: independent times, which leave parts of the unit interval empty


def stratified(B, generator, device):
    u = uniform((B,), generator, device)  # (B)
    return (u % 1)[:, None]
