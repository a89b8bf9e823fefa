#!/usr/bin/env python3
"""Times corpus BLEU, chrF and ROUGE-L of the references and of `skipbench score` on the same files, in one run.

    python compare_speed.py SKIPBENCH HYP.gz REF.gz

Both sides start from the texts: the binary's time is that of the whole command, reading and unpacking included; the
references' time begins with the texts in memory. Each is timed three times, turn by turn; the fastest counts. The scores
must agree. Versions: requirements.txt.
"""

import gzip
import json
import subprocess
import sys
import time

from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF


def rouge_l(hyps, refs):
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    return sum(scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hyps, refs)) / len(hyps)


REFERENCES = {
    "bleu": lambda hyps, refs: BLEU().corpus_score(hyps, [refs]).score,
    "chrf": lambda hyps, refs: CHRF().corpus_score(hyps, [refs]).score,
    "rougeL": rouge_l,
}


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().removesuffix("\n").split("\n")


def timed(work):
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def main():
    binary, hyp, ref = sys.argv[1:4]
    hyps, refs = lines(hyp), lines(ref)
    print(f"{len(hyps)} segments")
    print("| metric | reference s | skipbench s | ratio | difference |\n| --- | ---: | ---: | ---: | ---: |")
    for name, reference in REFERENCES.items():
        command = [binary, "score", "--metric", name, "--hyp", hyp, "--ref", ref, "--json"]
        theirs, ours = [], []
        for _ in range(3):
            seconds, expected = timed(lambda: reference(hyps, refs))
            theirs.append(seconds)
            seconds, output = timed(lambda: subprocess.run(command, check=True, capture_output=True))
            ours.append(seconds)
        found = json.loads(output.stdout)[name]["score"]
        print(f"| {name} | {min(theirs):.3f} | {min(ours):.4f} | {min(theirs) / min(ours):.0f}x | {abs(found - expected):.1e} |")


if __name__ == "__main__":
    main()
