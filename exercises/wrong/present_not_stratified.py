# distill.py:spread_state, exercise 9: independent steps of the student in a batch
def spread_state(x0, dt, k, mask_id, generator):
    B, T = x0.shape
    n_steps = round(1 / (k * dt))
    position = torch.arange(T, device=x0.device)
    order = rank_in_row(uniform((B, n_steps), generator, x0.device))
    student_step = order[:, position % n_steps]
    part_order = rank_in_row(uniform((B, k), generator, x0.device))
    part = 1 + part_order[:, position // n_steps % k]
    present = (uniform((B, 1), generator, x0.device) * n_steps).long()
    xt = torch.where(student_step < present, x0, mask_id)
    return xt, torch.where(student_step == present, part, 0)
