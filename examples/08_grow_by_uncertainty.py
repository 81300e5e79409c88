"""A training set that grows where the model is uncertain.

`kqeq.select(model, pool, n)` names the frames of a pool whose labels would teach the model most. Variances do
not depend on labels, so the pool needs none, and after each choice they are conditioned on the labels that it
would bring: a batch does not ask the same question twice.

A model that knows four single water molecules is to learn clusters up to pentamers, H3O(+) and OH(−). Left: its test
error as it grows, beside the same number of frames drawn at random; the band goes from the smallest to the largest error
of all draws. Right: what the first choices are. The model goes for the pentamers. From 12 to 20 frames its error is 10 to
16 % below the mean of the random draws; with 24 frames both have seen what there is. Where the pool is like the test set
and every system is common, drawing at random is hard to beat; forces and rare ions gain more
(`python benchmarks/training.py --only selection`).

Labels here are dipoles; `quantity="energy"` does the same for models with energies.
"""

import numpy as np

import example
import kqeq

START, STEP, ROUNDS = 4, 4, 6
"""Frames of single molecules to start from, frames per round, rounds."""


def error(pool, chosen, test):
    """A model of the chosen frames, and its test error of the dipole in e·Å."""
    model = kqeq.KQEq(targets=["dipole"]).fit([pool[i] for i in chosen])
    return model, model.evaluate(test)["dipole"].rmse


def grow(pool, test, chosen, step, rounds):
    """Errors of a training set that grows by ``kqeq.select``, and the frames in the order of choice."""
    chosen, curve = list(chosen), []
    for _ in range(rounds):
        model, rmse = error(pool, chosen, test)
        curve.append(rmse)
        rest = [i for i in range(len(pool)) if i not in chosen]
        picked = kqeq.select(model, [pool[i] for i in rest], step, quantity="dipole")
        chosen += [rest[i] for i in picked]
    return np.array(curve), chosen


def main(argv=None):
    """Compare selection with random draws."""
    options = example.options(__doc__, argv)
    draws, rounds = (2, 3) if options.quick else (8, ROUNDS)
    pool, test = kqeq.datasets.split("water")
    start = [i for i, atoms in enumerate(pool) if atoms.info["system"] == "water1"][:START]
    sizes = START + STEP * np.arange(rounds)
    selected, chosen = grow(pool, test, start, STEP, rounds)
    random, drawn = [], []
    for seed in range(draws):
        others = [i for i in np.random.default_rng(seed + 1).permutation(len(pool)) if i not in start]
        random.append([error(pool, [*start, *others[: n - START]], test)[1] for n in sizes])
        drawn += others[: 2 * STEP]
    random = np.array(random)

    figure, (left, right) = example.panels(2, width=3.6, height=3.1)
    left.fill_between(
        sizes, random.min(axis=0), random.max(axis=0), color="0.88", label=f"random, {draws} draws"
    )
    left.plot(sizes, random.mean(axis=0), "--s", color=example.COLOURS["short-range"], label="their mean")
    left.plot(sizes, selected, "-o", color=example.COLOURS["highlight"], label="chosen by uncertainty")
    left.set(xlabel="labelled frames", ylabel="test RMSE of the dipole (e·Å)", title="error as the set grows")
    left.set_ylim(bottom=0.0)
    left.legend()

    systems = sorted({atoms.info["system"] for atoms in pool})
    places = np.arange(len(systems))
    series = {
        "chosen by uncertainty": (chosen[START : START + 2 * STEP], "highlight"),
        "random": (drawn, "short-range"),
    }
    for k, (label, (frames, colour)) in enumerate(series.items()):
        found = [pool[i].info["system"] for i in frames]
        share = [100 * found.count(name) / len(found) for name in systems]
        right.bar(places + 0.4 * k - 0.2, share, 0.38, color=example.COLOURS[colour], label=label)
    right.set_xticks(places, systems, rotation=40, ha="right")
    right.set(ylabel=f"share of the first {2 * STEP} (%)", title="what is asked for first")
    right.legend()

    header = ["labelled frames", "chosen by uncertainty", "random, mean", "random, range"]
    rows = [
        [n, f"{s:.4f}", f"{r.mean():.4f}", f"{r.min():.4f} to {r.max():.4f}"]
        for n, s, r in zip(sizes, selected, random.T, strict=True)
    ]
    first = ", ".join(pool[i].info["system"] for i in chosen[START : START + STEP])
    notes = (
        "Test RMSE of dipole components, e·Å, QEq with default settings, independent test trajectories. First choices: "
        f"{first}."
    )
    example.finish(options, "08_grow_by_uncertainty", figure, header, rows, notes)
    if not options.quick:
        assert selected[2:5].mean() < random[:, 2:5].mean()


if __name__ == "__main__":
    main()
