# distill.py:ancestral_state, exercise 9: times that are not of the given generator
def ancestral_state(x0, dt, k, mask_id, generator):
    t = 1 - stratified(len(x0), generator, x0.device)
    u = torch.rand(x0.shape)
    step_of = ancestral_steps(u, t, dt, k)
    return x0.masked_fill(step_of > 0, mask_id), step_of
