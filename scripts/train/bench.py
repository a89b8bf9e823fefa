"""Training tokens/s and peak memory of `skipbench train` and of PyTorch (with peft for adapters), on the same weights, batch and threads.

    python scripts/train/bench.py target/release/skipbench --shape 135m --mode lora --rows 8 --tokens 256 --steps 4

Both begin from one folder of random weights, train on rows of as many tokens as are asked for with a loss on every token, and
are timed step by step; the first step is left out. Each runs in a process of its own, one after the other. Needs requirements.txt.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    # SmolLM2-135M, and the 8M model of the repository's own training runs.
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                 num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    "8m": dict(hidden_size=192, intermediate_size=512, num_hidden_layers=16, num_attention_heads=6,
               num_key_value_heads=6, vocab_size=1024, tie_word_embeddings=True),
}
RANK, ALPHA, RATE = 16, 32, 1e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPOSITORY = Path(__file__).parents[2]


def make(folder: Path, shape: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, rope_theta=10000.0)
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(REPOSITORY / "data/checkpoints/base/tokenizer.json", folder / "tokenizer.json")


def torch_steps(folder: Path, args: argparse.Namespace) -> None:
    """Runs in a process of its own and prints JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    if args.mode == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    rates = []
    for _ in range(args.steps + 1):
        ids = torch.randint(3, 1000, (args.rows, args.tokens + 1))
        begun = time.perf_counter()
        # As many inputs as skipbench has: the last token is only predicted.
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates.append(args.rows * args.tokens / (time.perf_counter() - begun))
    print(json.dumps({"rates": rates[1:], "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def skipbench_steps(folder: Path, work: Path, args: argparse.Namespace) -> dict:
    text = "\n".join(json.dumps({"source": f"{index} the dog", "reference": "the cat sees a house " * args.tokens}) for index in range(64))
    (work / "data.jsonl").write_text(text + "\n")
    adapter = {"lora": f"adapter: {{rank: {RANK}, alpha: {ALPHA}, base: {args.base}}}\n", "full": ""}[args.mode]
    (work / "train.yaml").write_text(
        f"out: out\nstart-from: {folder}\n{adapter}"
        "data: [{task: {name: x, source: data.jsonl, fields: {source: source, reference: reference}}}]\n"
        f"context: {args.tokens}\ntoo-long: cut\n"
        f"train: {{steps: {args.steps + 1}, batch-size: {args.rows}, loss-on: all, checkpoint-every: 1000,"
        f" optimizer: {{learning-rate: {RATE}}}}}\n"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    command = [args.skipbench, "train", work / "train.yaml"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    # The peak of this process alone.
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed; try it by hand")
    with open(work / "out/training/loss.csv") as log:
        rates = [float(row["tokens_per_s"]) for row in csv.DictReader(log)]
    return {"rates": rates[1:], "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skipbench", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--mode", choices=["lora", "full"], default="lora")
    parser.add_argument("--base", default="stored", help="what skipbench keeps the weights beside the adapters in")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--torch-in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch_in:
        return torch_steps(args.torch_in, args)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # In a process of its own, so that its memory is nobody's peak.
        subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench; from pathlib import Path;"
                        f" bench.make(Path({str(work / 'model')!r}), {args.shape!r})"], check=True)
        ours = skipbench_steps(work / "model", work, args)
        command = [sys.executable, __file__, *sys.argv[1:], "--torch-in", str(work / "model")]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, found in [("skipbench", ours), ("PyTorch", theirs)]:
        print(f"{name}: {statistics.median(found['rates']):.0f} tokens/s, peak {found['peak_mib']:.0f} MiB")
    ratio = statistics.median(ours["rates"]) / statistics.median(theirs["rates"])
    print(f"{args.shape} {args.mode}, {args.rows} x {args.tokens} tokens, {args.threads} threads: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
