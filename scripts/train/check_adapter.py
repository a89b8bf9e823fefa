"""Whether peft loads an adapter that `skipbench train` wrote, and computes with it what the merged folder computes.

    python scripts/train/check_adapter.py BASE_FOLDER ADAPTER_FOLDER MERGED_FOLDER

Needs torch, transformers and peft (requirements.txt beside this file); exits with 77 where they are not there. BASE_FOLDER is the
Hugging Face folder that was started from.
"""

import sys

try:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)


def main() -> None:
    base_folder, adapter_folder, merged_folder = sys.argv[1:]
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base, merged = load(base_folder), load(merged_folder)
    ids = torch.arange(3, 23).remainder(base.config.vocab_size).unsqueeze(0)
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, adapter_folder).eval()
        found, wanted = adapted(ids).logits, merged(ids).logits
    trained = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    apart = (found - wanted).abs().max().item()
    moved = (found - before).abs().max().item()
    print(f"{len(trained)} halves of adapters; peft and the merged folder are {apart:.2e} apart, the base {moved:.2e}")
    if apart > 1e-4 or moved < 1e-3:
        sys.exit("peft computes something else than the merged folder, or the adapter changes nothing")


if __name__ == "__main__":
    main()
