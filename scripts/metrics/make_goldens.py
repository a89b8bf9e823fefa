#!/usr/bin/env python3
"""Scores of sacrebleu and rouge_score on hostile text, for crates/metrics/tests/golden/hostile.json.gz.

    python make_goldens.py OUT.json.gz [--seed 1] [--corpora 40] [--segments 12]

The text is made up here from a seed: words, numbers and punctuation of several scripts, every Unicode space and
separator, combining marks, emoji, right-to-left text, control characters, empty and very long segments. Each corpus is
scored under every setting; a setting is written as the Rust test reads it. Versions: requirements.txt.
"""

import argparse
import gzip
import itertools
import json
import logging
import random

import sacrebleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF, TER

logging.disable(logging.WARNING)

SPACES = (
    [" "] * 30
    + list("\t\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\u2060\ufeff")
    + [chr(c) for c in range(0x2000, 0x200B)]
)
STEMS = (
    "the a of man dog bit sky skies dying lying news inning running hopping filing controlled agreed "
    "relational conditional rationally geology hopefully happy enjoy spied flies dies caresses "
    "nationalization operator feudalism decisiveness sensitivity triplicate formative electrical "
    "goodness revival allowance adjustment adoption communism yyy toy syzygy radically apology "
    "proceed exceed x 1 23 4.5 1,000 3-4 10% 1990s covid19 I'm don't it's u.s.a. e.g. re-do co-op"
).split()
OTHERS = (
    "Straße ÄÖÜ ΣΊΣΥΦΟΣ ΌΔΟΣ İstanbul KELVIN \u212a \u212b Ǆ ﬁn naïve e\u0301te\u0301 Ж привет ЁЛКА "
    "שלום עולם مرحبا ١٢٣ ۴۵ नमस्ते १२ ไทย 日本語 中文。 “引用” … — ‐ 한국어 ㍿ ㈱ カタカナ ひらがな ｱｲｳ ・ 、。 ！？ （） "
    "𠀀 𪛖 丽 ⼀ ㇀ ㄅ ︐ ︰ ☀ ✂ 👍 👩‍👩‍👧 🇩🇪 ½ ² Ⅷ € £ ¥ + < > = ~ ^ ` | $ § © ™ ° ← ∑ ∞ "
    "« » ¿ ¡ ‚ „ ‹ › 〈〉 《》 【】 ｡ ｢｣ ･ ．，？：；！＂（） "
    "&quot; &amp; &lt; &gt; &amp;lt; <skipped> & ; -- - _ / \\ ' '' 's s' ' . .. ... , ,, .5 5. 5, ,5 5- -5 "
    "( ) [ ] { } ! ? : ; \" # * @ \x00 \x01 \x7f \x1b \u200d \ufe0f \U000e0001 \u0345 a\u0300\u0301\u0302 "
    "(hi) \"hi\" hi. .hi hi.. ,a, a- -a 'a a'"
).split(" ")
CHARS = [chr(c) for c in itertools.chain(range(0x20, 0x7F), range(0xA1, 0x180))]


def any_character(rng):
    while True:
        c = rng.choice([rng.randrange(0x300), rng.randrange(0x3500), rng.randrange(0x110000)])
        # Line feeds part sentences and are given their own chance; surrogates are no text.
        if c != 0x0A and not 0xD800 <= c < 0xE000 and assigned(c):
            return chr(c)


def assigned(c):
    """Whether every Unicode version in use agrees on the character: assigned by 14.0, which Python 3.11 has."""
    import unicodedata

    return unicodedata.category(chr(c)) != "Cn"


def word(rng):
    kind = rng.random()
    if kind < 0.5:
        w = rng.choice(STEMS)
    elif kind < 0.8:
        w = rng.choice(OTHERS)
    elif kind < 0.9:
        w = "".join(rng.choice(CHARS) for _ in range(rng.randint(1, 6)))
    else:
        w = "".join(any_character(rng) for _ in range(rng.randint(1, 4)))
    case = rng.random()
    return w.upper() if case < 0.1 else w.title() if case < 0.2 else w


def text(rng):
    kind = rng.random()
    if kind < 0.04:
        return ""
    if kind < 0.07:
        return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 4)))
    if kind < 0.12:
        return "".join(rng.choice(".,!?-()'\"&;:…。，") for _ in range(rng.randint(1, 9)))
    n = rng.randint(1, 25) if kind < 0.97 else rng.randint(100, 300)
    parts = []
    for _ in range(n):
        parts.append(word(rng))
        if rng.random() < 0.9:
            parts.append(rng.choice(SPACES))
        if rng.random() < 0.03:
            parts.append(rng.choice(["\n", "-\n", "\n-", "\n\n", "\r\n"]))
    return "".join(parts)


def varied(rng, source):
    """A text that shares much with another one."""
    kind = rng.random()
    if kind < 0.08:
        return source
    if kind < 0.15:
        return text(rng)
    parts = source.split(" ")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(parts))
        what = rng.random()
        if what < 0.3:
            parts[at] = word(rng)
        elif what < 0.5:
            parts.insert(at, word(rng))
        elif what < 0.7 and len(parts) > 1:
            del parts[at]
        else:
            # A moved block, which TER shifts back.
            end = min(len(parts), at + rng.randint(1, 5))
            block = parts[at:end]
            del parts[at:end]
            to = rng.randint(0, len(parts))
            parts[to:to] = block
    return " ".join(parts)


def corpus(rng, segments):
    hyps, refs = [], []
    most = rng.choice([1, 1, 2, 3])
    same = rng.random() < 0.5
    for _ in range(segments):
        base = text(rng)
        hyps.append(varied(rng, base))
        refs.append([varied(rng, base) for _ in range(most if same else rng.randint(1, most))])
    return hyps, refs


def settings():
    for tokenize in ["13a", "intl", "zh", "char", "none"]:
        for lowercase in [False, True]:
            yield {"metric": "bleu", "tokenize": tokenize, "lowercase": lowercase}
    for smooth, value in [("none", None), ("floor", None), ("floor", 0.3), ("add-k", None), ("add-k", 0.25), ("exp", None)]:
        for effective in [False, True]:
            yield {"metric": "bleu", "smooth": smooth, "value": value, "effective": effective}
    yield {"metric": "chrf"}
    yield {"metric": "chrf", "word_order": 2}
    yield {"metric": "chrf", "word_order": 1, "lowercase": True, "beta": 1}
    yield {"metric": "chrf", "char_order": 4, "beta": 3, "whitespace": True}
    yield {"metric": "chrf", "char_order": 8, "word_order": 3, "eps": True}
    for normalized in [False, True]:
        for no_punct in [False, True]:
            for asian in [False, True]:
                yield {"metric": "ter", "normalized": normalized, "no_punct": no_punct, "asian": asian}
    yield {"metric": "ter", "case_sensitive": True}
    for name in ["rouge1", "rouge2", "rouge3", "rouge9", "rougeL", "rougeLsum"]:
        for stemmer in [False, True]:
            yield {"metric": name, "stemmer": stemmer}


def reference(setting):
    kind = setting["metric"]
    if kind == "bleu":
        return BLEU(
            tokenize=setting.get("tokenize", "13a"),
            lowercase=setting.get("lowercase", False),
            smooth_method=setting.get("smooth", "exp"),
            smooth_value=setting.get("value"),
            effective_order=setting.get("effective", False),
        )
    if kind == "chrf":
        return CHRF(
            char_order=setting.get("char_order", 6),
            word_order=setting.get("word_order", 0),
            beta=setting.get("beta", 2),
            lowercase=setting.get("lowercase", False),
            whitespace=setting.get("whitespace", False),
            eps_smoothing=setting.get("eps", False),
        )
    return TER(
        normalized=setting.get("normalized", False),
        no_punct=setting.get("no_punct", False),
        asian_support=setting.get("asian", False),
        case_sensitive=setting.get("case_sensitive", False),
    )


def scored(setting, hyps, refs):
    kind = setting["metric"]
    if kind.startswith("rouge"):
        scorer = rouge_scorer.RougeScorer([kind], use_stemmer=setting["stemmer"])
        segments = [scorer.score_multi(r, h)[kind] for h, r in zip(hyps, refs)]
        return {
            "score": sum(s.fmeasure for s in segments) / len(segments),
            "segments": [s.fmeasure for s in segments],
        }
    most = max(map(len, refs))
    streams = [[r[i] if i < len(r) else None for r in refs] for i in range(most)]
    metric = reference(setting)
    score = metric.corpus_score(hyps, streams)
    signature = str(metric.get_signature())
    return {
        "score": score.score,
        "segments": [reference(setting).sentence_score(h, r).score for h, r in zip(hyps, refs)],
        "signature": signature,
        "line": score.format(signature=signature),
    }


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--corpora", type=int, default=40)
    arguments.add_argument("--segments", type=int, default=12)
    arguments = arguments.parse_args()
    rng = random.Random(arguments.seed)
    corpora = []
    for _ in range(arguments.corpora):
        hyps, refs = corpus(rng, arguments.segments)
        results = [{"setting": s, **scored(s, hyps, refs)} for s in settings()]
        corpora.append({"hypotheses": hyps, "references": refs, "results": results})
    data = json.dumps({"sacrebleu": sacrebleu.__version__, "corpora": corpora}, ensure_ascii=False)
    # No time in the header: the same seed gives the same bytes.
    with open(arguments.out, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as out:
        out.write(data.encode("utf-8", "strict"))


if __name__ == "__main__":
    main()
