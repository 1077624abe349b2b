"""
Languages so small that everything about a sampler can be written down: what K calls of a perfect network lose.
$ python lessons/languages.py                                                                     (some seconds)

valid   the chance that a sample is a sentence of the language at all
lost    nats of KL(language || what the sampler writes): the total correlation of tokens that are revealed together,
        summed over the calls. 0: the samples have the language's own law. inf: some sentence is never written.
A temperature sharpens each call's distributions: it cannot make tokens agree that were drawn without each other.
"""

import itertools
import math


def words(*sentences):
    """Sentences of as many words -> {tuple of words: probability}, all equally likely."""
    return {tuple(s.split()): 1 / len(sentences) for s in sentences}


def chain(T, stay):
    """-> the law of T letters, each the one before it with probability `stay`."""
    changes = {
        x: sum(a != b for a, b in itertools.pairwise(x)) for x in itertools.product("ab", repeat=T)
    }
    return {x: stay ** (T - 1 - n) * (1 - stay) ** n / 2 for x, n in changes.items()}


LANGUAGES = {
    "constant, 4 of 3 letters": words("a a a a", "b b b b", "c c c c"),
    "two coins that agree": words("heads heads", "tails tails"),
    "I am, he is, she is": words("I am", "he is", "she is"),
    "a chain of 6": chain(6, 0.9),
}


def orders(sampler, T, K):
    """-> [(probability, the calls: a list of lists of places), ...] of all that the sampler may do with T blanks."""
    if sampler == "spread":  # the classes i mod K, in any order
        K = min(K, T)
        ways = [(1 / math.factorial(K), order) for order in itertools.permutations(range(K))]
        return [(p, [list(range(c, T, K)) for c in order]) for p, order in ways]
    # ancestral, steps of equal length: the step that reveals a token is any of the K, whatever the others do
    steps = itertools.product(range(K), repeat=T)
    return [(K**-T, [[i for i in range(T) if s[i] == k] for k in sorted(set(s))]) for s in steps]


def marginals(language, known, i, temperature=1.0):
    """-> {word: probability} of place i, given the known places {place: word}: what a perfect network says."""
    p = {}
    for x, weight in language.items():
        if all(x[j] == word for j, word in known.items()):
            p[x[i]] = p.get(x[i], 0) + weight
    if not p:  # no sentence is like this: the damage is done, and anything may follow
        return marginals(language, {}, i, temperature)
    p = {word: weight ** (1 / temperature) for word, weight in p.items()}
    return {word: weight / sum(p.values()) for word, weight in p.items()}


def law_of(language, sampler, K, temperature=1.0):
    """-> {tuple of words: probability} of the samples of a perfect network in K calls."""
    T, law = len(next(iter(language))), {}
    for chance, calls in orders(sampler, T, K):
        states = [(chance, {})]  # probability, what is known
        for places in calls:
            after = []
            for p, known in states:
                each = [marginals(language, known, i, temperature).items() for i in places]
                for drawn in itertools.product(*each):  # independently of each other
                    new = {i: word for i, (word, _) in zip(places, drawn, strict=True)}
                    after.append((p * math.prod(q for _, q in drawn), known | new))
            states = after
        for p, known in states:
            x = tuple(known[i] for i in range(T))
            law[x] = law.get(x, 0) + p
    return law


def valid(language, law):
    return sum(p for x, p in law.items() if language.get(x))


def lost(language, law):
    return sum(
        p * math.log(p / law[x]) if law.get(x) else math.inf for x, p in language.items() if p
    )


if __name__ == "__main__":
    print(
        f"{'language':26s} {'sampler':10s} {'calls':>5s} {'valid':>7s} {'lost':>7s} {'valid at temperature 0.5':>26s}"
    )
    for name, language in LANGUAGES.items():
        for sampler, K in itertools.product(("ancestral", "spread"), (1, 2, 3)):
            law, cold = law_of(language, sampler, K), law_of(language, sampler, K, 0.5)
            numbers = f"{valid(language, law):7.3f} {lost(language, law):7.3f} {valid(language, cold):26.3f}"
            print(f"{name:26s} {sampler:10s} {K:5d} {numbers}")
