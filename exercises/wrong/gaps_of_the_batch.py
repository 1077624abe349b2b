# model.py:close_gaps, exercise 6: gaps are closed over the whole batch, not in each row
def close_gaps(step_of):
    occurring = step_of.unique()
    occurring = occurring[occurring > 0]
    out = torch.zeros_like(step_of)
    for i, s in enumerate(occurring.tolist()):
        out[step_of == s] = i + 1
    return out
