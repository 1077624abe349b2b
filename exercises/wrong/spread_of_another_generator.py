# distill.py:spread_state, exercise 9: orders that are not of the given generator
def spread_state(x0, dt, k, mask_id, generator):
    B, T = x0.shape
    n_steps = round(1 / (k * dt))
    position = torch.arange(T, device=x0.device)
    order = rank_in_row(torch.rand(B, n_steps))
    student_step = order[:, position % n_steps]
    part_order = rank_in_row(torch.rand(B, k))
    part = 1 + part_order[:, position // n_steps % k]
    present = (stratified(B, generator, x0.device) * n_steps).long()
    xt = torch.where(student_step < present, x0, mask_id)
    return xt, torch.where(student_step == present, part, 0)
