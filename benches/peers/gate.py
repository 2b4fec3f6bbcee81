"""The granularity gate `s·(H + ΔH) ⊙ G + R` of VL-PET, op by op and compiled.

    python benches/peers/gate.py [--json FILE] [--quick]
"""
import torch

from timing import Bench

bench = Bench(__doc__)
B, T, K = (2, 5, 16) if bench.args.quick else (16, 512, 4096)
DTYPE = torch.bfloat16
GATES = {"large": (B, T, K), "middle-y": (B, T, 1)}


def gated(hidden, update, logits, residual):
    return 2.0 * (hidden + update) * torch.sigmoid(logits) + residual


def run(shape, backward, compiled):
    function = torch.compile(gated) if compiled else gated
    sets = [
        [bench.normal(*dims, grad=backward) for dims in ((B, T, K), (B, T, K), shape, (B, T, K))]
        for _ in range(bench.sets(10 * B * T * K))
    ]
    dy = bench.normal(B, T, K)

    def call(turn):
        operands = sets[turn % len(sets)]
        y = function(*operands)
        if backward:
            y.backward(dy)
            for operand in operands:
                operand.grad = None

    return call


for name, shape in GATES.items():
    for compiled in (False, True):
        if compiled and bench.args.no_compile:
            continue
        peer = "torch compiled" if compiled else "torch"
        for pass_, backward in (("forward", False), ("both", True)):
            bench.row("granular_scale", pass_, DTYPE, f"{name} {B}x{T}x{K}", peer, lambda: run(shape, backward, compiled))
bench.finish()
