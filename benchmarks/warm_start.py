"""What the warm fork server saves: a trial forked from it against a cold interpreter that imports the stack.

    python benchmarks/warm_start.py [--repeats 5]

Both are timed side by side in one run, in turn; the last line is the ratio of the medians.
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time

from harness.launchers.local import Local

IMPORTS = "import harness.worker, lm_eval, lm_eval.models.huggingface, bitsandbytes, wandb"


def touch() -> None:
    """What a forked trial finds imported already."""
    import harness.worker  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    Local(workers=1)._start_server()
    context = multiprocessing.get_context("forkserver")
    _forked(context)  # waits for the server's own imports
    forked, cold = [], []
    for _ in range(options.repeats):
        forked.append(_forked(context))
        cold.append(_cold())
    print(f"forked  median {statistics.median(forked):.3f} s   {min(forked):.3f} to {max(forked):.3f}")
    print(f"cold    median {statistics.median(cold):.3f} s   {min(cold):.3f} to {max(cold):.3f}")
    print(f"ratio   {statistics.median(cold) / statistics.median(forked):.0f}")


def _forked(context: multiprocessing.context.ForkServerContext) -> float:
    began = time.perf_counter()
    process = context.Process(target=touch)
    process.start()
    process.join()
    return time.perf_counter() - began


def _cold() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
