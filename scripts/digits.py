"""The digits: the file data/digits/digits.safetensors, how it is read, split and scaled, and how it was made.

Imported by the other scripts. Run by itself it writes the file again from scikit-learn's copy of the set.
"""
import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).resolve().parent.parent / "data" / "digits"
DATA = FOLDER / "digits.safetensors"
TRUNK = FOLDER / "trunk"
TRUNK_DIGITS = range(0, 5)
ADAPTER_DIGITS = range(5, 10)


def every_fifth(labels):
    """True where a sample's running index within its class, in file order, leaves 4 when divided by 5."""
    seen, held_out = {}, np.zeros(len(labels), dtype=bool)
    for position, label in enumerate(labels.tolist()):
        index = seen.get(label, 0)
        seen[label] = index + 1
        held_out[position] = index % 5 == 4
    return held_out


def pixels(images):
    """Counts 0..16 to f32 in -1..1, with a channel axis: x / 16, less the mean 0.5, over the deviation 0.5."""
    return images.astype(np.float32)[:, None] / 8 - 1


def load(digits, validation=False, path=DATA):
    """`((x, y), (x, y))`: the training part and the held-out part of the given consecutive digits.

    Labels count from the first of the digits. With `validation` the held-out part is not touched: the training part is
    split once more by the same rule, to choose a recipe on.
    """
    file = load_file(path)
    images, labels = file["images"], file["labels"]
    wanted = np.isin(labels, list(digits))
    images, labels = images[wanted], labels[wanted].astype(np.int64) - digits[0]
    held_out = every_fifth(labels)
    if validation:
        images, labels = images[~held_out], labels[~held_out]
        held_out = every_fifth(labels)
    x = pixels(images)
    return (x[~held_out], labels[~held_out]), (x[held_out], labels[held_out])


def main():
    parser = argparse.ArgumentParser(description="Write data/digits/digits.safetensors from scikit-learn's load_digits.")
    parser.add_argument("--out", type=Path, default=DATA, help="file to write (default: the one in the repository)")
    out = parser.parse_args().out
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    assert (images == digits.images).all() and images.max() == 16 and images.shape == (1797, 8, 8)
    save_file({"images": images, "labels": labels}, out)
    held_out = every_fifth(labels)
    print("digit  training  held out")
    for digit in range(10):
        of_digit = labels == digit
        print(f"{digit:5}  {(of_digit & ~held_out).sum():8}  {(of_digit & held_out).sum():8}")
    print(f"  all  {(~held_out).sum():8}  {held_out.sum():8}")


if __name__ == "__main__":
    main()
