"""What the peers' scripts share: how a call is timed, which options they take, and the JSON that they write.

A time is the median of windows of calls between two CUDA events (on a CPU: the clock), after calls that warm up. Calls go round sets of
operands that are larger together than the second-level cache, as `graftwork bench` does. Rows carry the op, pass, dtype and shape that
`graftwork bench` prints, so that `report.py` can put them side by side; the pass `both` is forward and backward.
"""
import argparse
import json
import platform
import statistics
import sys
import time

import torch

PAST_CACHE = 256 << 20
WINDOWS, WINDOW_SECONDS, MOST_CALLS = 9, 0.02, 256


class Bench:
    def __init__(self, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--json", metavar="FILE", help="write every row")
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything runs")
        parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
        self.args = parser.parse_args()
        self.device = torch.device(self.args.device)
        self.rows = []
        torch.manual_seed(0)

    def sets(self, size):
        """How many sets of operands of so many bytes are gone round."""
        if self.device.type == "cpu":
            return 1
        return max(1, min(16, -(-PAST_CACHE // max(1, size))))

    def normal(self, *dims, dtype=torch.bfloat16, grad=False):
        return torch.randn(*dims, device=self.device, dtype=dtype).requires_grad_(grad)

    def seconds(self, call):
        """Median seconds of `call(turn)`, and the distance of the quartiles over it."""
        def window(count):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                for turn in range(count):
                    call(turn)
                end.record()
                torch.cuda.synchronize()
                return start.elapsed_time(end) / 1e3 / count
            began = time.perf_counter()
            for turn in range(count):
                call(turn)
            return (time.perf_counter() - began) / count

        window(3)
        count = max(1, min(MOST_CALLS, round(WINDOW_SECONDS / max(window(1), 1e-7))))
        times = sorted(window(count) for _ in range(WINDOWS))
        median = statistics.median(times)
        quartiles = statistics.quantiles(times, n=4)
        return median, (quartiles[2] - quartiles[0]) / median

    def row(self, op, pass_, dtype, shape, peer, make):
        """Times what `make()` gives; a peer that is not installed, or that refuses, leaves a row that says why."""
        name = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
        row = {"op": op, "pass": pass_, "dtype": name, "shape": shape, "peer": peer}
        try:
            row["seconds"], row["spread"] = self.seconds(make())
            text = f"{row['seconds'] * 1e6:12.1f} µs"
        except Exception as error:  # whatever a peer raises is its own affair, and the other rows' times stand
            row["note"] = f"{type(error).__name__}: {error}".splitlines()[0]
            text = row["note"]
        print(f"{op:22} {pass_:8} {name:5} {shape:32} {peer:22} {text}", flush=True)
        self.rows.append(row)

    def finish(self):
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu"
        if self.args.json:
            with open(self.args.json, "w") as file:
                json.dump({"device": device, "versions": versions, "rows": self.rows}, file, indent=1)
        if not any("seconds" in row for row in self.rows):
            sys.exit("nothing could be timed")
