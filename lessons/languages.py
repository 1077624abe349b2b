"""
Languages so small that everything about a sampler can be written down: what a perfect network loses
in K steps.
$ python lessons/languages.py                                                         (some seconds)

valid   the probability that a sample is a sentence of the language at all
lost    nats of KL(language || distribution of the samples). For one order this is the total
        correlation of tokens that are unmasked together, summed over the steps; a random order
        loses at most the average of its orders. 0: the samples have the language's own
        distribution. inf: some sentence is never sampled.

A temperature sharpens the distributions of each step: it cannot make tokens agree that were drawn
independently of each other.
"""

import itertools
import math


def words(*sentences):
    """Sentences of as many words -> {tuple of words: probability}, all equally likely."""
    return {tuple(s.split()): 1 / len(sentences) for s in sentences}


def chain(T, stay):
    """-> {tuple of T letters: probability}: each is the one before it with probability `stay`."""
    language = {}
    for x in itertools.product("ab", repeat=T):
        n_changes = sum(a != b for a, b in itertools.pairwise(x))
        language[x] = stay ** (T - 1 - n_changes) * (1 - stay) ** n_changes / 2
    return language


LANGUAGES = {
    "constant, 4 of 3 letters": words("a a a a", "b b b b", "c c c c"),
    "two coins that agree": words("heads heads", "tails tails"),
    "I am, he is, she is": words("I am", "he is", "she is"),
    "a chain of 6": chain(6, 0.9),
}


def orders(sampler, T, K):
    """
    -> [(probability, [[positions of a step], ...]), ...]: all that the sampler may do with T masks.
    """
    found = []
    if sampler == "spread":  # position i goes to class i mod K, the classes in any order
        K = min(K, T)
        for order in itertools.permutations(range(K)):
            steps = [list(range(c, T, K)) for c in order]
            found.append((1 / math.factorial(K), steps))
        return found
    # ancestral: the step that unmasks a token is any of the K, whatever the others do
    for step_of in itertools.product(range(K), repeat=T):
        steps = [[i for i in range(T) if step_of[i] == k] for k in sorted(set(step_of))]
        found.append((K**-T, steps))
    return found


def marginals(language, known, i, temperature=1.0):
    """
    -> {word: probability} of position i, given the known ones {position: word}: what a perfect
    network predicts.
    """
    p = {}
    for x, weight in language.items():
        if all(x[j] == word for j, word in known.items()):
            p[x[i]] = p.get(x[i], 0) + weight
    if not p:  # no sentence is like this: the damage is done, and anything may follow
        return marginals(language, {}, i, temperature)
    p = {word: weight ** (1 / temperature) for word, weight in p.items()}
    total = sum(p.values())
    return {word: weight / total for word, weight in p.items()}


def after_step(language, states, positions, temperature):
    """[(probability, {position: word}), ...] -> the same after a step unmasks these positions."""
    after = []
    for p, known in states:
        each = [marginals(language, known, i, temperature).items() for i in positions]
        for drawn in itertools.product(*each):  # independently of each other
            new = {i: word for i, (word, _) in zip(positions, drawn, strict=True)}
            after.append((p * math.prod(q for _, q in drawn), known | new))
    return after


def distribution_of(language, sampler, K, temperature=1.0):
    """-> {tuple of words: probability} of the samples of a perfect network in K steps."""
    T = len(next(iter(language)))
    found = {}
    for probability, steps in orders(sampler, T, K):
        states = [(probability, {})]  # and what is known
        for positions in steps:
            states = after_step(language, states, positions, temperature)
        for p, known in states:
            x = tuple(known[i] for i in range(T))
            found[x] = found.get(x, 0) + p
    return found


def valid(language, samples):
    return sum(p for x, p in samples.items() if language.get(x))


def lost(language, samples):
    nats = 0.0
    for x, p in language.items():
        if p:
            nats += p * math.log(p / samples[x]) if samples.get(x) else math.inf
    return nats


def main():
    print("language                   sampler    steps   valid    lost   valid at temperature 0.5")
    for name, language in LANGUAGES.items():
        for sampler, K in itertools.product(("ancestral", "spread"), (1, 2, 3)):
            samples = distribution_of(language, sampler, K)
            cold = distribution_of(language, sampler, K, temperature=0.5)
            print(
                f"{name:26s} {sampler:10s} {K:5d} {valid(language, samples):7.3f} "
                f"{lost(language, samples):7.3f} {valid(language, cold):26.3f}"
            )


if __name__ == "__main__":
    main()
