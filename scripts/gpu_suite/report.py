"""One report of what `run.sh` measured: report.md with the tables, report.svg with ours beside the best of the others.

    python3 report.py FOLDER
"""
import html
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def read(path):
    """The JSON of a file, or nothing where a step has written none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def by_key(files, peers):
    """For (op, dtype, shape) and (pass, who) the seconds of every round."""
    times, floors = defaultdict(lambda: defaultdict(list)), {}
    for file in files:
        for row in read(file).get("rows", []):
            key, who = (row["op"], row["dtype"], row["shape"]), row.get("peer", "graftwork")
            if row.get("seconds") is not None:
                times[key][row["pass"], who].append(row["seconds"])
            if not peers:
                floors[key, row["pass"]] = row.get("floor_seconds")
                if row.get("baseline_seconds") is not None:
                    times[key][row["pass"], row["baseline"]].append(row["baseline_seconds"])
    return times, floors


def compared(folder):
    """Rows (op, pass, dtype, shape, ours, floor, {who: theirs}), all in median seconds."""
    ours, floors = by_key(sorted(folder.glob("bench-*.json")), False)
    theirs, _ = by_key(sorted(folder.glob("peer-*.json")), True)
    rows = []
    for key, passes in ours.items():
        median = {which: statistics.median(seconds) for which, seconds in passes.items()}
        forward, backward = (median.get((name, "graftwork")) for name in ("forward", "backward"))
        if forward and backward:
            median["both", "graftwork"] = forward + backward
        others = {which: statistics.median(seconds) for which, seconds in theirs.get(key, {}).items()}
        for name in ("forward", "backward", "both", "step"):
            mine = median.get((name, "graftwork"))
            beside = {who: s for (p, who), s in {**median, **others}.items() if p == name and who != "graftwork"}
            if mine and (name != "both" or beside):
                rows.append((key[0], name, key[1], key[2], mine, floors.get((key, name)), beside))
    return rows


def micro(seconds):
    return "–" if seconds is None else f"{seconds * 1e6:.1f}"


def tables(folder, rows):
    lines = ["# What was measured", ""]
    doctor = read(folder / "doctor.json")
    if doctor:
        lines += ["```json", json.dumps(doctor, indent=1)[:2000], "```", ""]
    lines += ["| step | outcome | exit status | seconds |", "|---|---|---|---|"]
    summary = folder / "summary.tsv"
    lines += ["| " + " | ".join(line.split("\t")) + " |" for line in summary.read_text().splitlines()] if summary.exists() else []
    verify = read(folder / "verify.json").get("summary", {})
    if verify:
        lines += ["", f"verify: {verify.get('rows')} rows, {verify.get('failed')} failed."]
    lines += ["", "Times in µs, medians of the rounds. × is the other's time over ours: above 1, ours is faster.", ""]
    lines += ["| op | pass | dtype | shape | ours | floor | others |", "|---|---|---|---|---|---|---|"]
    for op, pass_, dtype, shape, mine, floor, others in rows:
        beside = ", ".join(f"{who} {micro(s)} ({s / mine:.2f}×)" for who, s in sorted(others.items()))
        lines.append(f"| {op} | {pass_} | {dtype} | {shape} | {micro(mine)} | {micro(floor)} | {beside or '–'} |")
    return "\n".join(lines) + "\n"


def plot(rows):
    """A bar a row: the fastest other's time over ours, with a line at 1."""
    rows = [row for row in rows if row[6]]
    height, left, width = 22, 430, 420
    most = max((min(row[6].values()) / row[4] for row in rows), default=1.0)
    scale = width / max(most, 1.2)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 180}" height="{height * len(rows) + 50}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="{left}" y="18">time of the fastest other over ours</text>']
    for i, (op, pass_, dtype, shape, mine, _, others) in enumerate(rows):
        who, seconds = min(others.items(), key=lambda item: item[1])
        ratio, y = seconds / mine, 30 + height * i
        label = html.escape(f"{op} {pass_} {dtype} {shape}")
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="{height - 6}" '
                     f'fill="{"#2a78b5" if ratio >= 1 else "#c25a3a"}"/>')
        parts.append(f'<text x="{left + ratio * scale + 5:.1f}" y="{y + 13}">{ratio:.2f} {html.escape(who)}</text>')
    parts.append(f'<line x1="{left + scale:.1f}" x2="{left + scale:.1f}" y1="24" y2="{30 + height * len(rows)}" stroke="black"/>')
    return "\n".join(parts + ["</svg>"]) + "\n"


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("report.py FOLDER: the folder that run.sh wrote to")
    folder = Path(sys.argv[1])
    rows = compared(folder)
    (folder / "report.md").write_text(tables(folder, rows))
    (folder / "report.svg").write_text(plot(rows))
    print(f"{len(rows)} rows in {folder / 'report.md'}, plot in {folder / 'report.svg'}")


main()
