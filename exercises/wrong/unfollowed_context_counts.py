# drafters.py:NGram.probs, exercise 12: a context that nothing follows counts as seen


def probs(self, text):
    p = self.unigram.copy()
    for m in range(2, min(self.n, len(text) + 1) + 1):
        index = self.index_of(text[-(m - 1) :])
        if index is None:
            break
        first, end = self.start[m - 1][index : index + 2]
        if self.smoothing == "laplace":
            p[:] = self.backoff[m - 1][index]
        else:
            p *= self.backoff[m - 1][index]
        followers = self.keys[m - 1][first:end] % self.V
        p[followers] += self.fraction[m - 1][first:end]
    return p
