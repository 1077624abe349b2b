# drafters.py:NGram.log_probs, exercise 12: Laplace takes shorter contexts into account


def log_probs(self, context):
    p = np.tile(self.unigram, (len(context), 1))  # (B, V)
    for m in range(2, self.n + 1):
        index, found = self.find(context[:, self.n - m :])  # of the last m - 1 tokens
        start = self.start[m - 1]
        found &= start[index] < start[index + 1]
        for row in found.nonzero()[0]:
            first, end = start[index[row] : index[row] + 2]
            tokens = self.keys[m - 1][first:end] % self.V  # what has followed
            backoff = self.backoff[m - 1][index[row]]
            p[row] = backoff * p[row]
            p[row, tokens] += self.fraction[m - 1][first:end]
    return torch.from_numpy(p).log_()
