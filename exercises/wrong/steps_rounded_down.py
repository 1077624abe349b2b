# distill.py:spread_state, exercise 9: K is one step less where 1 / (k dt) is rounded down


def spread_state(x0, dt, k, mask_id, generator):
    B, T = x0.shape
    n_steps = int(1 / (k * dt))  # K
    position = torch.arange(T, device=x0.device)
    order = rank_in_row(uniform((B, n_steps), generator, x0.device))  # (B, K)
    student_step = order[:, position % n_steps]  # (B, T) in 0 ... K - 1
    part_order = rank_in_row(uniform((B, k), generator, x0.device))  # (B, k)
    member = position // n_steps  # its number within its class, from 0
    part = 1 + part_order[:, member % k]  # (B, T) in 1 ... k
    present = (stratified(B, generator, x0.device) * n_steps).long()  # (B, 1) in 0 ... K - 1
    xt = torch.where(student_step < present, x0, mask_id)
    return xt, torch.where(student_step == present, part, 0)
