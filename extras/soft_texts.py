"""
Texts of an API teacher, with its log-probabilities, as soft_labels.py beside this file reads them:
one JSON object a line, tokens by name. A name that could be several tokens is none.

$ python -m extras.soft_labels config/soft_shakespeare_char.py --soft_data=texts.jsonl \
      --dataset=shakespeare_char --out_dir=out/soft_api
"""

import math

import numpy as np

import data
from configurator import UserError, print_once

JSONL = (
    'a response of a chat or a completion API, or its "logprobs": '
    '{"content": [{"token": "a", "top_logprobs": [{"token": "a", "logprob": -0.1}, ...]}, ...]} or '
    '{"tokens": ["a", ...], "top_logprobs": [{"a": -0.1, ...}, ...]}'
)
ROUNDING = 0.01  # a server that computes in half precision may write so much more than 0
# exp of less is no normal float32; servers write -9999 for what they have not computed
NEVER = -87


def name_of(token, octets=None):
    """A token's text and, if the server tells them, its bytes [int] -> its name."""
    if octets and not token.startswith("token_id:"):
        return bytes(octets)
    return token.encode("utf-8", "surrogatepass")


def known_logp(value):
    """
    A log-probability, or None for what says that it is not known: null, NaN, -9999. Raises
    ValueError for what is none.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a log-probability is {value!r}, no number")
    if value > ROUNDING:
        raise ValueError(f"a log-probability is {value}; log-probabilities are at most 0")
    return min(value, 0.0) if value > NEVER else None


def parse_text(text):
    """
    An object of one of the two shapes in JSONL, or with one as its "logprobs" -> the names of its
    tokens, [(name, log-probability), ...] of the candidates at each that have one. Raises what
    Python raises if it is something else.
    """
    text = text.get("logprobs", text)
    if text is None:
        raise ValueError('"logprobs" is null: ask the server for logprobs and top_logprobs')
    if "content" in text:
        tokens = [name_of(position["token"], position.get("bytes")) for position in text["content"]]
        tops = []
        for position in text["content"]:
            top = position["top_logprobs"] or []
            tops.append([(name_of(c["token"], c.get("bytes")), c["logprob"]) for c in top])
    else:
        tokens = [name_of(token) for token in text["tokens"]]
        tops = []
        for top in text["top_logprobs"]:
            tops.append([(name_of(token), value) for token, value in (top or {}).items()])
    if len(tokens) != len(tops):
        raise ValueError(f"{len(tokens)} tokens, {len(tops)} top_logprobs")
    candidates = []
    for top in tops:
        known = [(name, known_logp(value)) for name, value in top]
        candidates.append([(name, logp) for name, logp in known if logp is not None])
    return tokens, candidates


def texts_of(path):
    """
    A .jsonl -> (number of its line, names of tokens, candidates at each), ... Raises UserError with
    the line.
    """
    try:
        for number, row in data.numbered_rows(path):
            try:
                # the answers of a whole response, or the line is one text
                texts = [parse_text(text) for text in row.get("choices", [row])]
            except KeyError as error:
                raise ValueError(f"line {number}: {error} is missing. A line is {JSONL}") from None
            except (AttributeError, TypeError) as error:
                raise ValueError(f"line {number}: no text with top_logprobs ({error})") from None
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            for tokens, candidates in texts:
                yield number, tokens, candidates
    except (OSError, UnicodeDecodeError) as error:
        raise data.unreadable(path, error) from None
    except ValueError as error:
        raise UserError(f"{path}, {error}.") from None


def identified(tokens, candidates, names):
    """
    The names of a text's tokens, the candidates at each, TokenNames -> [(id, {id: log-probability})
    at each position], with None for a token that is not known and without such candidates; the
    names of those tokens, of those candidates.
    """
    tables = names.tables_for([*tokens, *(name for top in candidates for name, _ in top)])
    positions = []
    unknown_tokens = []
    unknown_candidates = []
    for token, top in zip(tokens, candidates, strict=True):
        number = names.id_of(token, tables)
        if number is None:
            unknown_tokens.append(token)
        logp_of = {}
        for name, logp in top:
            candidate = names.id_of(name, tables)
            if candidate is None:
                unknown_candidates.append(name)
            else:
                logp_of[candidate] = max(logp, logp_of.get(candidate, -math.inf))
        positions.append((number, logp_of))
    return positions, unknown_tokens, unknown_candidates


def known_runs(positions):
    """
    -> [positions in a row whose tokens are known, ...]: after one that is not, the context is not
    known either, and a new text begins. A single position has no label, and is left out.
    """
    runs = [[]]
    for position in positions:
        if position[0] is None:
            runs.append([])
        else:
            runs[-1].append(position)
    return [run for run in runs if len(run) > 1]


def rows_of(run, L, K):
    """
    [(id, {id: log-probability}), ...] -> for SoftWriter.add, n rows of tokens (n, L), ids
    (n, L, K), logp (n, L, K).
    """
    n = math.ceil(len(run) / L)
    x = np.zeros((n, L), dtype=np.int64)
    ids = np.zeros((n, L, K), dtype=np.int64)
    logp = np.full((n, L, K), -np.inf)
    for i, (token, logp_of) in enumerate(run):
        row = i // L
        column = i % L
        x[row, column] = token  # what the teacher wrote, not what it found likeliest
        best = sorted(logp_of, key=lambda number: -logp_of[number])[:K]
        if column == 0 or not best:  # the first token of a row has no context in it
            continue
        ids[row, column] = best[0]
        for k, number in enumerate(best):
            ids[row, column, k] = number
            logp[row, column, k] = logp_of[number]
    return x, ids, logp


def check_known(path, counts, first):
    """
    Says how many tokens and candidates are not known, and the first of them. Raises UserError if no
    label is left, or if most tokens are not known.
    """
    hint = "Ask the server for token_id:N, or for `bytes`."
    why = f"no token of the vocabulary, or one of several (first: {first})"
    if 2 * counts["unknown_tokens"] > counts["tokens"]:
        most = f"{counts['unknown_tokens']} of {counts['tokens']} tokens"
        raise UserError(f"In {path} {most} are {why}. Is it another vocabulary? {hint}")
    if not counts["labels"]:
        position = "no position after a text's first has a known log-probability of a known token"
        raise UserError(f"{path} holds no label: {position}.")
    labels = f"{path}: labels at {counts['labels']} of {counts['tokens']} tokens"
    if not first:
        return print_once(f"{labels}.")
    some = f"{counts['unknown_tokens']} tokens and {counts['unknown_candidates']} candidates"
    print_once(f"{labels}; left out are {some}, each {why}. {hint}")
