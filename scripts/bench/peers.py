#!/usr/bin/env python3
"""skipbench, llama.cpp, transformers and stock candle on the same weights, taking turns in one run.

    cargo build --release -p skipbench-engine --example pace
    python scripts/bench/peers.py make MODELS [--shape smollm2-135m|97m|thin]      the weights, up to a gigabyte and a half
    python scripts/bench/peers.py run MODELS OUT [--types f32,bf16,q8_0,q4_1] [--rounds 5]
    python scripts/bench/peers.py table OUT                         draws OUT/README.md again

`make` writes one set of random weights of a shape: folders in f32 and bf16, and GGUF files in f32, bf16, Q8_0
and Q4_1, of which the quantised ones hold what the reference quantises the f32 weights to. `run` starts an engine of each kind
for each type, and in each round asks all of them, in an order drawn anew, for the same: decoding at batch 1, 8 and 32, a prompt of
128 and of 1,024 tokens. A ratio is within a round, and so is the share of the memory's rate, which is measured anew in each by
copying. OUT/peers.json gathers the rounds, so that types can be run one at a time.

Versions: requirements.txt. llama.cpp is the library inside xllamacpp's wheel, called through ctypes.
"""

import argparse
import ctypes
import glob
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMON = {"max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5}
SHAPES = {
    "smollm2-135m": COMMON
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "97m": COMMON
    | {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 8000,
        "tie_word_embeddings": False,
    },
    "thin": COMMON
    | {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
        "tie_word_embeddings": True,
    },
}
SHAPE_NAMES = {
    "smollm2-135m": "the shape of SmolLM2-135M",
    "97m": "97M parameters (12 layers of width 768)",
    "thin": "a thin model (24 layers of width 256)",
}
TYPES = ["f32", "bf16", "q8_0", "q4_1"]
ENGINES = ["skipbench", "llama.cpp", "transformers", "candle"]
THREADS = os.cpu_count()
PACE = Path(__file__).parents[2] / "target/release/examples/pace"
# What is measured: rows, tokens of a prompt, new tokens. A step of decoding is the median of the steps.
CELLS = {
    "decode, batch 1": (1, 16, 33),
    "decode, batch 8": (8, 16, 17),
    "decode, batch 32": (32, 16, 9),
    "prefill 128": (1, 128, 1),
    "prefill 1024": (1, 1024, 1),
}


# --- the weights -----------------------------------------------------------------------------------------------------------


def make(models, name):
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    models.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name] | {"name": name}
    (models / "shape.json").write_text(json.dumps(shape, indent=1))
    config = LlamaConfig(**SHAPES[name], bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).eval()
    model.to(torch.float32).save_pretrained(models / "f32")
    tensors = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    for kind in TYPES:
        write_gguf(gguf, models / f"{kind}.gguf", tensors, kind, shape)
    model.to(torch.bfloat16).save_pretrained(models / "bf16")


def write_gguf(gguf, path, tensors, kind, shape):
    """llama.cpp's names, with the rows of Q and K as its RoPE wants them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_dimension_count(shape["hidden_size"] // shape["num_attention_heads"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_vocab_size(shape["vocab_size"])
    # Ids go in and out; there is no text.
    writer.add_tokenizer_model("no_vocab")
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    types = {
        "f32": gguf.GGMLQuantizationType.F32,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
        "q4_1": gguf.GGMLQuantizationType.Q4_1,
    }
    for name, values in tensors.items():
        base = name.removesuffix(".weight")
        if base == "lm_head" and shape["tie_word_embeddings"]:
            continue  # The embedding.
        if base.startswith("model.layers."):
            _, _, layer, part = base.split(".", 3)
            name = f"blk.{layer}.{names[part]}.weight"
            heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(part)
            if heads:
                n, (rows, columns) = shape[heads], values.shape
                values = values.reshape(n, 2, rows // n // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        else:
            name = f"{names[base]}.weight"
        kept = types[kind] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- the engines -----------------------------------------------------------------------------------------------------------
# Each is a process that says how long loading took and then answers a request a line.


class Blob(ctypes.Structure):
    """Parameters by value, whose layout nobody here knows beyond its beginning: larger than any of them."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class LlamaCpp:
    def __init__(self, path):
        import xllamacpp

        lib = ctypes.CDLL(glob.glob(f"{Path(xllamacpp.__file__).parent}/xllamacpp*.so")[0])
        lib.llama_model_default_params.restype = Blob
        lib.llama_context_default_params.restype = Blob
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Blob]
        lib.llama_init_from_model.restype = ctypes.c_void_p
        lib.llama_init_from_model.argtypes = [ctypes.c_void_p, Blob]
        lib.llama_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
        lib.llama_batch_init.restype = Batch
        lib.llama_decode.argtypes = [ctypes.c_void_p, Batch]
        lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        lib.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        lib.llama_get_memory.restype = ctypes.c_void_p
        lib.llama_get_memory.argtypes = [ctypes.c_void_p]
        lib.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        params = lib.llama_context_default_params()
        # n_ctx, n_batch, n_ubatch, n_seq_max: what follows is left as it is.
        assert list(params.words[:4]) == [512, 2048, 512, 1], "another layout of llama_context_params"
        params.words[0], params.words[1], params.words[3] = 32 * 256, 2048, 32
        self.context = lib.llama_init_from_model(self.model, params)
        assert self.context, "no context"
        # Of a context for 32 rows one row has but a share; a long prompt needs one of its own.
        params.words[0], params.words[3] = 2048, 1
        self.alone = lib.llama_init_from_model(self.model, params)
        for context in (self.context, self.alone):
            lib.llama_set_n_threads(context, THREADS, THREADS)
        self.batch = lib.llama_batch_init(2048, 0, 1)
        self.vocab_size = shape_of(path)["vocab_size"]
        self.lib = lib

    def run(self, prompts, new_tokens):
        import numpy

        lib, batch = self.lib, self.batch
        context = self.alone if len(prompts) == 1 else self.context
        lib.llama_memory_clear(lib.llama_get_memory(context), True)

        def step(rows, at):
            """Decodes the tokens of each row from position `at` on, and gives the likeliest next ones."""
            batch.n_tokens = 0
            ends = []
            for row, tokens in enumerate(rows):
                for offset, token in enumerate(tokens):
                    i = batch.n_tokens
                    batch.token[i], batch.pos[i] = token, at + offset
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                    batch.logits[i] = offset + 1 == len(tokens)
                    batch.n_tokens += 1
                ends.append(batch.n_tokens - 1)
            assert lib.llama_decode(context, batch) == 0
            size = (self.vocab_size,)
            logits = (numpy.ctypeslib.as_array(lib.llama_get_logits_ith(context, end), size) for end in ends)
            return [[int(row.argmax())] for row in logits]

        return greedy(prompts, new_tokens, step)


class Transformers:
    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[path.name]
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=kind).eval()

    def run(self, prompts, new_tokens):
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)

        def step(rows, _):
            with torch.inference_mode():
                logits = self.model(torch.tensor(rows), past_key_values=cache, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1, keepdim=True).tolist()

        return greedy(prompts, new_tokens, step)


def greedy(prompts, new_tokens, step):
    seconds, tokens, rows, at = [], [], prompts, 0
    for _ in range(new_tokens):
        start = time.perf_counter()
        following = step(rows, at)
        seconds.append(time.perf_counter() - start)
        at += len(rows[0])
        rows = following
        tokens.append(rows[0][0])
    return {"prefill_s": seconds[0], "step_s": seconds[1:], "tokens": tokens}


def serve(engine, path):
    """An engine of Python's as a process of its own."""
    kind = {"llama.cpp": LlamaCpp, "transformers": Transformers}[engine]
    # What is imported is no part of loading.
    __import__({"llama.cpp": "xllamacpp", "transformers": "transformers"}[engine])
    import numpy  # noqa: F401

    start = time.perf_counter()
    model = kind(path)
    print(time.perf_counter() - start, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(model.run(request["prompts"], request["new_tokens"])), flush=True)


class Worker:
    def __init__(self, engine, kind, models, pace):
        quantised = kind.startswith("q")
        path = models / (f"{kind}.gguf" if quantised or engine == "llama.cpp" else kind)
        self.vocab_size = shape_of(path)["vocab_size"]
        if engine in ("skipbench", "candle"):
            command = [pace, engine, path, "stored" if quantised else kind]
        else:
            command = [sys.executable, __file__, "serve", engine, path]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAYON_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)},
        )
        self.load_s = float(self.read())
        first = self.ask(1, 16, 1)
        self.first_token_s = self.load_s + first["prefill_s"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return line

    def ask(self, rows, length, new_tokens, strategy="full"):
        ids = random.Random(f"{rows} {length}")
        prompts = [[ids.randrange(3, self.vocab_size) for _ in range(length)] for _ in range(rows)]
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens, "strategy": strategy}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def resident_mib(self, which):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) / 1024

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def shape_of(path):
    """Of a model's file or folder."""
    return json.loads((path.parent / "shape.json").read_text())


def read_bytes(path, shape):
    """What a step reads of a file of weights: all but an embedding that is not the LM head too, of which it reads a row."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    tied = shape["tie_word_embeddings"]
    return sum(int(tensor.n_bytes) for tensor in tensors if tied or tensor.name != "token_embd.weight")


# --- the run ---------------------------------------------------------------------------------------------------------------


def run(models, out, types, engines, rounds, pace):
    out.mkdir(parents=True, exist_ok=True)
    path = out / "peers.json"
    results = json.loads(path.read_text()) if path.exists() else {"types": {}}
    shape = json.loads((models / "shape.json").read_text())
    results |= {"machine": machine(), "shape": shape["name"]}
    for kind in types:
        here = [e for e in engines if not (e == "transformers" and kind.startswith("q"))]
        workers = {engine: Worker(engine, kind, models, pace) for engine in here}
        found = {
            engine: {
                "first_token_s": worker.first_token_s,
                "memory_loaded_mib": worker.resident_mib("VmRSS"),
                "tokens": [worker.ask(1, 8 + n, 1)["tokens"][0] for n in range(12)],
                "cells": {cell: [] for cell in CELLS},
            }
            for engine, worker in workers.items()
        }
        found["skipbench"] |= {"read_bytes": read_bytes(models / f"{kind}.gguf", shape), "copied_bytes_per_s": []}
        for number in range(rounds + 1):
            for cell, (rows, length, new) in CELLS.items():
                order = list(workers)
                random.Random(f"{number} {cell}").shuffle(order)
                for engine in order:
                    answer = workers[engine].ask(rows, length, new)
                    steps = answer["step_s"]
                    seconds = statistics.median(steps) / rows if steps else answer["prefill_s"] / length
                    # The first round warms up.
                    if number:
                        found[engine]["cells"][cell].append(1 / seconds)
            if number:
                copied = subprocess.run([pace, "copy"], check=True, capture_output=True, text=True).stdout
                found["skipbench"]["copied_bytes_per_s"].append(float(copied))
            print(f"{kind}: round {number} of {rounds}", file=sys.stderr)
        for engine, worker in workers.items():
            found[engine]["memory_peak_mib"] = worker.resident_mib("VmHWM")
            worker.close()
        results["types"][kind] = found
        path.write_text(json.dumps(results, indent=1) + "\n")
    table(out)


def machine():
    from importlib.metadata import version

    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "cpu": cpu.split(":")[1].strip(),
        "threads": THREADS,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        **{name: version(name) for name in ("xllamacpp", "torch", "transformers", "gguf")},
    }


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table(out):
    results = json.loads((out / "peers.json").read_text())
    m = results["machine"]
    versions = {
        "skipbench": f"skipbench {m['commit']}",
        "llama.cpp": f"llama.cpp in xllamacpp {m['xllamacpp']}",
        "transformers": f"transformers {m['transformers']} on torch {m['torch']}",
        "candle": "candle-transformers as in Cargo.lock",
    }
    ran = {engine for found in results["types"].values() for engine in found}
    lines = [
        f"# Peers on {SHAPE_NAMES[results['shape']]}, {m['date']}",
        "",
        f"{m['cpu']}, {m['threads']} threads. {', '.join(versions[engine] for engine in ENGINES if engine in ran)}. Random weights, the same "
        "for all; `scripts/bench/peers.py` says how they are made and asked.",
        "",
        "Tokens per second, median of the rounds with the smallest and the largest. A ratio is skipbench over the peer within a "
        "round.",
        "",
    ]
    for kind in [kind for kind in TYPES if kind in results["types"]]:
        found = results["types"][kind]
        peers = [engine for engine in ENGINES if engine in found]
        lines += [f"## {kind}", "", "| | " + " | ".join(peers) + " | " + " | ".join(f"over {p}" for p in peers[1:]) + " |"]
        lines += ["| --- " + "| ---: " * (2 * len(peers) - 1) + "|"]
        for cell in CELLS:
            ours = found["skipbench"]["cells"][cell]
            cells = [spread(found[engine]["cells"][cell], 0) for engine in peers]
            for peer in peers[1:]:
                cells.append(spread([a / b for a, b in zip(ours, found[peer]["cells"][cell])]))
            lines.append(f"| {cell} | " + " | ".join(cells) + " |")
        plain = {
            "load and first token, s": ("first_token_s", 2),
            "memory when loaded, MiB": ("memory_loaded_mib", 0),
            "peak memory, MiB": ("memory_peak_mib", 0),
        }
        for name, (key, digits) in plain.items():
            cells = [f"{found[engine][key]:.{digits}f}" for engine in peers]
            lines.append(f"| {name} | " + " | ".join(cells) + " |" + " |" * (len(peers) - 1))
        ours = found["skipbench"]
        steps = zip(ours["cells"]["decode, batch 1"], ours["copied_bytes_per_s"])
        shares = [rate * ours["read_bytes"] / copied for rate, copied in steps]
        copied = spread([rate / 1e9 for rate in ours["copied_bytes_per_s"]], 1)
        lines += [
            "",
            f"At batch 1 skipbench reads its weights ({ours['read_bytes'] / 1e6:.0f} MB a token) at {spread(shares)} of the rate "
            f"at which the same threads copy memory, {copied} GB/s read and written.",
        ]
        ours = found["skipbench"]["tokens"]
        same = {peer: sum(a == b for a, b in zip(ours, found[peer]["tokens"])) for peer in peers[1:]}
        said = ", ".join(f"{n} of {len(ours)} with {peer}" for peer, n in same.items())
        lines += ["", f"Behind {len(ours)} prompts the likeliest token is the same in {said}.", ""]
    (out / "README.md").write_text("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("models", type=Path)
    making.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    running = commands.add_parser("run")
    running.add_argument("models", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--types", default=",".join(TYPES))
    running.add_argument("--engines", default=",".join(ENGINES))
    running.add_argument("--rounds", type=int, default=5)
    running.add_argument("--pace", type=Path, default=PACE)
    serving = commands.add_parser("serve")
    serving.add_argument("engine")
    serving.add_argument("path", type=Path)
    drawing = commands.add_parser("table")
    drawing.add_argument("out", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "make":
            make(arguments.models, arguments.shape)
        case "serve":
            serve(arguments.engine, arguments.path)
        case "table":
            table(arguments.out)
        case "run":
            engines = arguments.engines.split(",")
            if "skipbench" not in engines:
                parser.error("skipbench is what the others are compared with")
            run(arguments.models, arguments.out, arguments.types.split(","), engines, arguments.rounds, arguments.pace)


if __name__ == "__main__":
    main()
