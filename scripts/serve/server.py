"""`skipbench serve` as a context, and the commands that its answers are held against."""

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPBENCH = os.environ.get("SKIPBENCH", str(ROOT / "target/release/skipbench"))


class Server:
    def __init__(self, model, *options):
        self.command = [SKIPBENCH, "serve", "--port", "0", "--model", str(model), *options]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if line.startswith("serving "):
                self.base_url = line.split(" at ")[1].strip()
                break
        else:
            raise RuntimeError("the server did not start")
        # What it says must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        assert code == 0, f"the server ended with {code}"

    def resident_mib(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")


def skipbench(command, model, lines, *options):
    """The output lines of `skipbench generate` or `loglikelihood` over JSON lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = subprocess.run(
            [SKIPBENCH, command, "--model", str(model), "--input", str(path), *options],
            check=True, capture_output=True, text=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]
