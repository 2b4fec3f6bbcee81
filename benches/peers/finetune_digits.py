"""The digits job in PyTorch and PEFT: adapt the trunk pretrained on 0 to 4 so that it tells 5 to 9 apart, and time it.

    python benches/peers/finetune_digits.py                                      # LoRA, rank 8, on the queries and values
    python benches/peers/finetune_digits.py --targets all-linear --rank 4 --alpha 8
    python benches/peers/finetune_digits.py --method linear-probe
    python benches/peers/finetune_digits.py --seeds 0 1 2 3 4 --no-timing --json accuracy.json
    python benches/peers/finetune_digits.py --no-accuracy                        # only the steps per second

A step is what a training loop does: gather a batch, forward, cross-entropy, backward, AdamW, schedule, clear gradients.
"""
import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import ViTForImageClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import digits

TARGETS = {
    "qv": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["fc1", "fc2"],
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
}


def build(args, seed, attention="sdpa"):
    """The trunk with a fresh classifier, wrapped for the method; only what the method trains asks for gradients."""
    torch.manual_seed(seed)
    model = ViTForImageClassification.from_pretrained(args.trunk, attn_implementation=attention)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    if args.method == "lora":
        return get_peft_model(model, LoraConfig(
            r=args.rank, lora_alpha=args.alpha, lora_dropout=args.dropout, target_modules=TARGETS[args.targets],
            modules_to_save=["classifier"]))
    if args.method == "linear-probe":
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    return model


def counts(model):
    """Trainable and all parameters, the classifier that PEFT sets aside counted once."""
    named = [(name, p) for name, p in model.named_parameters() if "original_module" not in name]
    return sum(p.numel() for _, p in named if p.requires_grad), sum(p.numel() for _, p in named)


class Trainer:
    """The loop shared by the accuracy and the timing: shuffled whole batches, one call of `step` per batch."""

    def __init__(self, model, x, y, args, seed, total_steps, fused):
        self.model, self.x, self.y, self.batch = model.train(), x, y, args.batch
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr,
                                           weight_decay=args.weight_decay, fused=fused)
        warmup = round(args.warmup * total_steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda s: (s + 1) / warmup if s < warmup
            else (1 + math.cos(math.pi * min(1, (s - warmup) / (total_steps - warmup)))) / 2)
        self.queue = []

    def step(self):
        if not self.queue:
            order = torch.randperm(len(self.x), generator=self.generator)
            self.queue = list(order[:len(order) // self.batch * self.batch].split(self.batch))
        rows = self.queue.pop()
        loss = F.cross_entropy(self.model(pixel_values=self.x[rows]).logits, self.y[rows])
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(pixel_values=x).logits.argmax(-1) == y).float().mean().item()


def fine_tune(args, seed, train, held_out):
    model = build(args, seed)
    trainer = Trainer(model, *train, args, seed, args.steps, fused=True)
    started = time.perf_counter()
    for step in range(1, args.steps + 1):
        loss = trainer.step()
        if step % max(1, args.steps // 5) == 0 and args.verbose:
            print(f"  seed {seed}  step {step:5}/{args.steps}  loss {loss.item():.4f}  {time.perf_counter() - started:5.0f} s",
                  file=sys.stderr, flush=True)
    return accuracy(model, *train), accuracy(model, *held_out)


def steps_per_second(args, train):
    """For every pair of attention and AdamW the steps per second of each window, after a warm-up that is not counted.

    The pairs take turns, one window each, so that a busy spell of the machine does not fall on one of them alone.
    """
    trainers, rates = {}, {}
    for pair in itertools.product(("eager", "sdpa"), ("default", "fused")):
        model = build(args, 0, attention=pair[0])
        trainers[pair] = Trainer(torch.compile(model) if args.compile else model, *train, args, 0, args.steps, pair[1] == "fused")
        rates[pair] = []
        for _ in range(args.window):
            trainers[pair].step()
    for _ in range(args.windows):
        for pair, trainer in trainers.items():
            started = time.perf_counter()
            for _ in range(args.window):
                trainer.step()
            rates[pair].append(args.window / (time.perf_counter() - started))
    return rates


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, default, text: parser.add_argument(name, type=type(default), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--method", choices=["lora", "linear-probe", "full"], default="lora", help="what is trained (default: lora)")
    parser.add_argument("--targets", choices=TARGETS, default="qv", help="layers that LoRA adapts (default: qv)")
    option("--rank", 8, "of LoRA")
    option("--alpha", 16.0, "of LoRA; the update is scaled by alpha / rank")
    option("--dropout", 0.0, "on LoRA's input")
    option("--lr", 5e-3, "peak learning rate, then along a cosine to 0")
    option("--warmup", 0.05, "share of the steps over which the learning rate climbs")
    option("--weight-decay", 0.01, "AdamW's, on all that is trained")
    option("--steps", 1100, "training steps; 22 make a pass over the data at the default batch")
    option("--batch", 32, "images per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each; classifier, LoRA and order (default: 0)")
    parser.add_argument("--trunk", type=Path, default=digits.TRUNK, help="folder of the trunk (default: data/digits/trunk)")
    parser.add_argument("--validation", action="store_true", help="judge on a fifth of the training part, to choose a recipe")
    parser.add_argument("--no-accuracy", dest="accuracy", action="store_false", help="skip the training to the end")
    parser.add_argument("--no-timing", dest="timing", action="store_false", help="skip the steps per second")
    option("--window", 50, "steps in a timed window")
    option("--windows", 15, "timed windows; the median is reported")
    option("--threads", 2, "of the processor")
    parser.add_argument("--compile", action="store_true", help="time the model under torch.compile; needs a C++ compiler")
    parser.add_argument("--quiet", dest="verbose", action="store_false", help="no progress on standard error")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
    train, held_out = (tuple(map(torch.from_numpy, part)) for part in digits.load(digits.ADAPTER_DIGITS, args.validation))
    trained, whole = counts(build(args, 0))
    name = f"lora r={args.rank} alpha={args.alpha:g} {args.targets}" if args.method == "lora" else args.method
    report = {"method": name, "trainable": trained, "parameters": whole, "trainable_percent": 100 * trained / whole,
              "recipe": {k: getattr(args, k) for k in ("lr", "warmup", "weight_decay", "dropout", "steps", "batch")},
              "threads": args.threads, "compiled": args.compile, "validation": args.validation,
              "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
                           "peft": peft.__version__}}
    print(f"{name}: {trained} of {whole} parameters trained ({100 * trained / whole:.2f} %)")

    if args.accuracy:
        report["accuracy"] = []
        print("\nseed  training  held out")
        for seed in args.seeds:
            on_train, on_held_out = fine_tune(args, seed, train, held_out)
            report["accuracy"].append({"seed": seed, "training": on_train, "held_out": on_held_out})
            print(f"{seed:4}  {on_train:8.2%}  {on_held_out:8.2%}", flush=True)
        scores = [row["held_out"] for row in report["accuracy"]]
        print(f"mean {'':8}  {statistics.mean(scores):8.2%}   lowest {min(scores):.2%}, highest {max(scores):.2%}")

    if args.timing:
        report["steps_per_second"] = []
        print(f"\nsteps per second, {args.threads} threads, median of {args.windows} windows of {args.window} steps")
        print("attention  AdamW    median  slowest  fastest")
        for (attention, adamw), rates in steps_per_second(args, train).items():
            median = statistics.median(rates)
            report["steps_per_second"].append({"attention": attention, "adamw": adamw, "median": median, "windows": rates})
            print(f"{attention:9}  {adamw:7}  {median:6.1f}  {min(rates):7.1f}  {max(rates):7.1f}")
        best = max(report["steps_per_second"], key=lambda row: row["median"])
        report["best_steps_per_second"] = best["median"]
        print(f"best: {best['median']:.1f} with {best['attention']} attention and {best['adamw']} AdamW")

    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
