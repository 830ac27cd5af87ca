"""From the seconds of the rounds to the figures that are wanted, each held against what is to be reached."""

import statistics

OURS, SESSION, BARE, PLAIN, FP16 = "edgegen", "session", "bare call", "plain onnxruntime", "edgegen fp16"
WAYS = {  # of PyTorch: its worker's setting, and its environment
    "eager": ("eager", {}),
    "channels_last": ("channels_last", {}),
    "compile": ("compile", {}),
    "compile, frozen": ("compile", {"TORCHINDUCTOR_FREEZING": "1"}),
}
# Ratios of PyTorch's best to edgegen that are wanted; more than 1 everywhere else.
WANTED = {"dcgan": 1.4, "vae-128": 1.05, "vae-512": 1.05, "unet-step": 1.15}
MOST_OVERHEAD = 0.03  # of edgegen over the bare call, and of an image over the runs of its graph
MOST_FP16 = 1.03  # fp16 is to be no slower than fp32; two measurements of one thing differ by so much
MOST_OTHERS_SHARE = 0.03


def summarize(subject, batch, medians):
    """The row of one subject at one batch size: medians of the rounds, PyTorch's best way, and every target.

    A ratio is the median of the ratios within the rounds, for what the machine does meanwhile is in both of its times.
    """
    rounds = len(medians[OURS])
    found = {name: statistics.median(times_s) for name, times_s in medians.items()}
    best = min((way for way in WAYS if len(medians[way]) == rounds), key=found.__getitem__)
    inner = SESSION if SESSION in medians else OURS
    targets = [_at_least("torch / edgegen", ratios(medians, best, OURS), WANTED.get(subject, 1.0))]
    targets.append(_at_most("overhead", ratios(medians, inner, BARE), 1 + MOST_OVERHEAD))
    if SESSION in medians:
        targets.append(_at_most("image overhead", ratios(medians, OURS, SESSION), 1 + MOST_OVERHEAD))
    if FP16 in medians:
        targets.append(_at_most("fp16 / fp32", ratios(medians, FP16, OURS), MOST_FP16))
    return {
        "subject": subject,
        "batch": batch,
        "rounds": rounds,
        "best_of_torch": best,
        "plain_ratio": statistics.median(ratios(medians, PLAIN, OURS)) if PLAIN in medians else None,
        "targets": targets,
        "median_s": found,
        "rounds_s": medians,
    }


def ratios(medians, over, under):
    """By round."""
    return [one / other for one, other in zip(medians[over], medians[under], strict=True)]


def target(row, name):
    """The target of that name, or None where the row has none."""
    return next((one for one in row["targets"] if one["name"] == name), None)


def verdict(row):
    """ "pass" or "miss", or "busy": measured while others worked, which counts for nothing."""
    if not row["quiet"]:
        return "busy"
    return "pass" if all(one["met"] for one in row["targets"]) else "miss"


def _at_least(name, values, wanted):
    median = statistics.median(values)
    met = median > wanted if wanted == 1 else median >= wanted
    return {"name": name, "median": median, "spread": [min(values), max(values)], "wanted": wanted, "met": met}


def _at_most(name, values, wanted):
    median = statistics.median(values)
    return {"name": name, "median": median, "spread": [min(values), max(values)], "wanted": wanted, "met": median <= wanted}
