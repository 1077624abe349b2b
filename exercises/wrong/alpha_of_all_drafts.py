# speculative.py:acceptance, exercise 16: all drafts count as judged, also those after a refusal


def acceptance(counts):
    return (counts.accepted.sum() / (counts.tested[0] * len(counts.tested)).clamp(min=1)).item()
