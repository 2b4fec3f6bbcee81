"""Pretrain the small encoder-decoder of data/captions/trunk to spell captions of the digits 0 to 4.

    python scripts/pretrain_captions.py                  # writes data/captions/trunk
    python scripts/pretrain_captions.py --out elsewhere --seed 7

An image is 16 patches of 2 by 2 pixels, projected and put before the characters of a prompt that names the style. Half of each
batch is captions of images of 0 to 4. The other half is spelling practice: the prompt goes on with a drawn digit and a drawn word
("letters 7qzx"), and the caption is to be made of these, whatever the image shows ("q-z-x"). The trunk so meets every character
and every style with any word, but no image of 5 to 9, nor the words five to nine, nor the held-out fifth of 0 to 4.
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration
from transformers.utils import logging

import digits
from pretrain_digits import augment

FOLDER = digits.FOLDER.parent / "captions"
BOS, PAD, EOS = 0, 1, 2
PATCH = 2


class Captions:
    """data/captions/captions.json: the vocabulary, the styles, and how the ten digits are called."""

    def __init__(self, path=FOLDER / "captions.json"):
        file = json.loads(path.read_text())
        self.words, self.styles = file["words"], file["styles"]
        symbols = file["specials"] + list(file["characters"])
        self.ids = {symbol: i for i, symbol in enumerate(symbols)}

    def caption(self, style, digit, word):
        return style["caption"].format(digit=digit, word=word, letters="-".join(word))

    def encode(self, texts):
        """Ids with an end-of-sequence, padded to the longest."""
        rows = [torch.tensor([self.ids[c] for c in text] + [EOS]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def patches(images):
    """`[b, 1, 8, 8]` to `[b, 16, 4]`: patches row by row, the pixels of each row by row."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def trunk(symbols, args):
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=symbols, d_model=args.width, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=2 * args.width, decoder_ffn_dim=2 * args.width, max_position_embeddings=48,
        activation_function="gelu", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, bos_token_id=BOS, pad_token_id=PAD,
        eos_token_id=EOS, decoder_start_token_id=EOS, forced_eos_token_id=None, feat_dim=PATCH * PATCH))
    visual = nn.Module()
    visual.feat_embedding = nn.Sequential(nn.Linear(PATCH * PATCH, args.width), nn.LayerNorm(args.width))
    model.model.encoder.visual_embedding = visual
    return model


def logits(model, images, prompts, targets):
    """Of every target given those before it: visual tokens first, then the prompt."""
    text = model.model.shared(prompts)
    visual = model.model.encoder.visual_embedding.feat_embedding(patches(images))
    mask = torch.cat([torch.ones(visual.shape[:2], dtype=torch.long), (prompts != PAD).long()], 1)
    start = torch.full_like(targets[:, :1], EOS)
    return model(inputs_embeds=torch.cat([visual, text], 1), attention_mask=mask,
                 decoder_input_ids=torch.cat([start, targets[:, :-1]], 1)).logits


def draw_word(generator, captions):
    letters = "abcdefghijklmnopqrstuvwxyz"
    length = int(torch.randint(2, 8, (1,), generator=generator))
    word = "".join(letters[i] for i in torch.randint(26, (length,), generator=generator))
    return draw_word(generator, captions) if word in captions.words else word


def draw(captions, labels, generator):
    """Prompts and captions: the first half of the images captioned, the other half practice."""
    prompts, texts = [], []
    styles = torch.randint(len(captions.styles), (len(labels),), generator=generator).tolist()
    for i, (label, number) in enumerate(zip(labels, styles)):
        style = captions.styles[number]
        if i < len(labels) // 2:
            prompts.append(style["prompt"])
            texts.append(captions.caption(style, label, captions.words[label]))
        else:
            digit, word = int(torch.randint(10, (1,), generator=generator)), draw_word(generator, captions)
            prompts.append(f"{style['prompt']} {digit}{word}")
            texts.append(captions.caption(style, digit, word))
    return captions.encode(prompts), captions.encode(texts)


def exact(model, images, prompts, targets):
    """Share of captions that greedy decoding spells exactly: those of which every next character is the likeliest."""
    with torch.no_grad():
        best = logits(model, images, prompts, targets).argmax(-1)
    return ((best == targets) | (targets == PAD)).all(1).float().mean().item()


def score(model, captions, x, y):
    """Exact captions over all images and styles."""
    parts = []
    for style in captions.styles:
        texts = [captions.caption(style, label, captions.words[label]) for label in y.tolist()]
        parts.append(exact(model, x, captions.encode([style["prompt"]] * len(x)), captions.encode(texts)))
    return sum(parts) / len(parts)


def practice_score(model, captions, x, seed):
    generator = torch.Generator().manual_seed(seed)
    prompts, targets = draw(captions, [0] * 512, generator)
    return exact(model, x[:256], prompts[256:], targets[256:])


def save(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def train(model, captions, x, y, held_x, held_y, args):
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay)
    warmup = max(1, args.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / warmup if s < warmup else (1 + math.cos(math.pi * (s - warmup) / (args.steps - warmup))) / 2)
    started, total = time.perf_counter(), 0.0
    for step in range(1, args.steps + 1):
        rows = torch.randint(len(x), (args.batch,), generator=generator)
        prompts, targets = draw(captions, y[rows].tolist(), generator)
        images = augment(x[rows], generator, 1.0, 20.0, 0.25, 0.1)
        out = logits(model, images, prompts, targets)
        loss = F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % args.every == 0 or step == args.steps:
            model.eval()
            print(f"step {step:5}/{args.steps}  loss {total / args.every:.4f}  held out {score(model, captions, held_x, held_y):7.2%}  "
                  f"practice {practice_score(model, captions, x, 1):7.2%}  {time.perf_counter() - started:5.0f} s", flush=True)
            model.train()
            total = 0.0
            save(model, args.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = lambda name, default, text: parser.add_argument(name, type=type(default), default=default, help=f"{text} (default: {default})")
    parser.add_argument("--out", type=Path, default=FOLDER / "trunk", help="folder to write (default: data/captions/trunk)")
    option("--seed", 1, "of the weights, the order, the practice and the augmentation")
    option("--steps", 4000, "optimizer steps")
    option("--batch", 64, "samples per step, half of them practice")
    option("--width", 64, "features of a token")
    option("--lr", 2e-3, "peak learning rate, after a warm-up over the first tenth, then along a cosine to 0")
    option("--weight-decay", 0.01, "AdamW's")
    option("--every", 250, "steps between reports and copies on disk")
    option("--threads", 1, "of the processor; another number adds in another order and gives other weights")
    args = parser.parse_args()

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    captions = Captions()
    (x, y), (held_x, held_y) = (tuple(map(torch.from_numpy, part)) for part in digits.load(digits.TRUNK_DIGITS))
    model = trunk(len(captions.ids), args)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(x)} training and {len(held_x)} held-out images")
    train(model, captions, x, y, held_x, held_y, args)
    print(f"{(args.out / 'model.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
