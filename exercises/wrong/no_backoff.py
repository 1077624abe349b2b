# drafters.py:NGram.log_probs, exercise 13: Kneser-Ney without what shorter contexts say


def log_probs(self, context):
    p = np.tile(self.unigram, (len(context), 1))  # (B, V)
    for m in range(2, self.n + 1):
        number, found = self.find(context[:, self.n - m :])  # of the last m - 1 tokens
        start, share, tokens = self.start[m - 1], self.share[m - 1], self.keys[m - 1]
        for row in (found & (start[number] < start[number + 1])).nonzero()[0]:
            first, end = start[
                number[row] : number[row] + 2
            ]  # its continuations are neighbours in the table
            backoff = self.backoff[m - 1][number[row]]
            p[row] = backoff if self.smoothing == "laplace" else backoff / self.V
            p[row, tokens[first:end] % self.V] += share[first:end]
    return torch.from_numpy(p).log_()
