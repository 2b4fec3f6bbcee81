"""Pretrain the small vision transformer of data/digits/trunk on the training part of the digits 0 to 4.

    python scripts/pretrain_digits.py                    # writes data/digits/trunk
    python scripts/pretrain_digits.py --out elsewhere --seed 7

The digits 5 to 9 are never seen, nor is the held-out fifth of 0 to 4 before the table at the end.
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging

import digits


def trunk():
    """The freshly drawn model: 4 layers of width 64, 16 patches of 2 by 2 pixels and a class token."""
    return ViTForImageClassification(ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, hidden_act="gelu",
        image_size=8, patch_size=2, num_channels=1, num_labels=len(digits.TRUNK_DIGITS), qkv_bias=True,
        layer_norm_eps=1e-12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label={i: str(digit) for i, digit in enumerate(digits.TRUNK_DIGITS)},
        label2id={str(digit): i for i, digit in enumerate(digits.TRUNK_DIGITS)}))


def augment(x, generator, shift, degrees, scale, noise):
    """Every image moved, turned and stretched by its own random amount (bilinear, empty outside), then ink and noise."""
    def draw(*shape):
        return 2 * torch.rand(*shape, generator=generator) - 1

    n = len(x)
    angle, stretch = draw(n) * math.radians(degrees), torch.exp(draw(n, 2) * math.log1p(scale))
    shear = draw(n) * scale
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * stretch[:, 0], (shear - sin) * stretch[:, 1]
    theta[:, 1, 0], theta[:, 1, 1] = sin * stretch[:, 0], cos * stretch[:, 1]
    theta[:, :, 2] = draw(n, 2) * shift * 2 / x.shape[-1]
    ink = (x + 1) / 2
    ink = F.grid_sample(ink, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    ink = ink * (1 + noise * draw(n, 1, 1, 1)) + noise / 2 * torch.randn(x.shape, generator=generator)
    return ink.clamp(0, 1) * 2 - 1


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        right = (model(pixel_values=x).logits.argmax(-1) == y).float().mean().item()
    model.train()
    return right


def train(model, x, y, args):
    generator = torch.Generator().manual_seed(args.seed)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": args.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))
    per_epoch = len(x) // args.batch
    steps = args.epochs * per_epoch
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / warmup if s < warmup else (1 + math.cos(math.pi * (s - warmup) / (steps - warmup))) / 2)
    model.train()
    started = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for rows in order[:per_epoch * args.batch].split(args.batch):
            batch = augment(x[rows], generator, args.shift, args.degrees, args.scale, args.noise)
            loss = F.cross_entropy(model(pixel_values=batch).logits, y[rows], label_smoothing=args.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % max(1, args.epochs // 20) == 0 or epoch == args.epochs:
            print(f"epoch {epoch:4}/{args.epochs}  loss {total / per_epoch:.4f}  training accuracy {accuracy(model, x, y):7.2%}  "
                  f"{time.perf_counter() - started:5.0f} s", flush=True)


def save(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    preprocessor = {
        "do_normalize": True, "do_rescale": True, "do_resize": False,
        "image_mean": [0.5], "image_processor_type": "ViTImageProcessor", "image_std": [0.5],
        "rescale_factor": 1 / 16, "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, default, text: parser.add_argument(name, type=type(default), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--out", type=Path, default=digits.TRUNK, help="folder to write (default: data/digits/trunk)")
    option("--seed", 1, "of the weights, the order and the augmentation")
    option("--epochs", 300, "passes over the training part")
    option("--batch", 64, "images per step")
    option("--lr", 1e-3, "peak learning rate, after a warm-up over the first twentieth, then along a cosine to 0")
    option("--weight-decay", 0.05, "AdamW's, on matrices only")
    option("--label-smoothing", 0.1, "of the cross-entropy")
    option("--shift", 1.0, "largest move in pixels, each way")
    option("--degrees", 20.0, "largest turn")
    option("--scale", 0.25, "largest relative stretch and shear")
    option("--noise", 0.1, "largest relative change of ink; half of it is the deviation of the pixel noise")
    option("--threads", 1, "of the processor; another number adds in another order and gives other weights")
    args = parser.parse_args()

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    (x, y), (held_x, held_y) = (tuple(map(torch.from_numpy, part)) for part in digits.load(digits.TRUNK_DIGITS))
    model = trunk()
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(x)} training and {len(held_x)} held-out images")
    started = time.perf_counter()
    train(model, x, y, args)
    seconds = time.perf_counter() - started
    save(model, args.out)
    size = (args.out / "model.safetensors").stat().st_size
    print("\nseed  epochs  training  held out  seconds    bytes")
    print(f"{args.seed:4}  {args.epochs:6}  {accuracy(model, x, y):8.2%}  {accuracy(model, held_x, held_y):8.2%}  {seconds:7.0f}  {size:7}")


if __name__ == "__main__":
    main()
