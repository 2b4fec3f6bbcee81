"""A frozen linear with a low-rank update: the bare product, and PEFT's LoRA eager and compiled.

    python benches/peers/linear.py [--json FILE] [--quick]
"""
import torch
from torch import nn
from torch.nn import functional as F

from timing import Bench

bench = Bench(__doc__)
SHAPES = [(m, n, k, r) for m in (2048, 8192) for n, k in ((4096, 4096), (14336, 4096), (4096, 14336)) for r in (16, 64)]
if bench.args.quick:
    SHAPES = [(32, 64, 64, 4)]
DTYPE = torch.bfloat16


def operands(m, n, k):
    count = bench.sets(2 * (m * k + m * n))
    return [(bench.normal(m, k, grad=True), bench.normal(m, n)) for _ in range(count)]


def product(m, n, k):
    weight, bias, sets = bench.normal(n, k), bench.normal(n), operands(m, n, k)
    return lambda turn: F.linear(sets[turn % len(sets)][0].detach(), weight, bias)


def input_gradient(m, n, k):
    """What the backward pass of a frozen layer without an adapter is: one product."""
    weight, sets = bench.normal(n, k), operands(m, n, k)
    return lambda turn: sets[turn % len(sets)][1] @ weight


def lora(m, n, k, r, dropout, backward, compiled):
    from peft import LoraConfig, get_peft_model

    base = nn.Sequential(nn.Linear(k, n)).to(bench.device, DTYPE)
    config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules=["0"])
    model = get_peft_model(base, config, autocast_adapter_dtype=False).train()
    step = torch.compile(model) if compiled else model
    sets = operands(m, n, k)

    def call(turn):
        x, dy = sets[turn % len(sets)]
        if not backward:
            return step(x)
        y = step(x)
        y.backward(dy)
        x.grad = None
        model.zero_grad(set_to_none=True)

    return call


for m, n, k, r in SHAPES:
    shape = f"{m}x{n}x{k} r={r} bias"
    bench.row("frozen_linear", "forward", DTYPE, shape, "product alone", lambda: product(m, n, k))
    bench.row("frozen_linear", "backward", DTYPE, shape, "dx alone", lambda: input_gradient(m, n, k))
    for compiled in (False, True):
        if compiled and bench.args.no_compile:
            continue
        peer = "peft compiled" if compiled else "peft"
        bench.row("frozen_linear", "forward", DTYPE, shape, peer, lambda: lora(m, n, k, r, 0.0, False, compiled))
        bench.row("frozen_linear", "both", DTYPE, shape, peer, lambda: lora(m, n, k, r, 0.0, True, compiled))
        bench.row("frozen_linear", "both", DTYPE, shape + " dropout", peer, lambda: lora(m, n, k, r, 0.1, True, compiled))
bench.finish()
