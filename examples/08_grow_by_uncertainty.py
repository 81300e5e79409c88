"""A training set that grows where the model is uncertain.

`kqeq.select(model, pool, n)` names the frames of a pool whose labels would teach the model most. Variances do
not depend on labels, so the pool needs none, and after each choice they are conditioned on the labels that it
would bring: a batch does not ask the same question twice.

Left, the case that it is made for: a model that knows four single water molecules is to learn clusters up to
pentamers, H3O(+) and OH(−). It goes for the pentamers first. The same number of frames drawn at random is the
band: smallest to largest error of all draws.

Right, a case where it does not help: a pool in which four families of molecules are mixed just as in the test
set. The model asks for the largest molecules, which leave it the least certain, whether or not they are
tested most. Where pool and test come from the same distribution, drawing at random is hard to beat.

Labels here are dipoles; `quantity="energy"` does the same for models with energies.
"""

import numpy as np

import example
import kqeq

CASES = {
    "water, from four monomers": (("water",), "water1", 4, 4, 6),
    "mixed pool, from six frames": (("water", "alkanes", "carbon_chain", "ag3"), None, 6, 8, 6),
}
"""Data sets; system to start from (all if None); frames to start with; frames per round; rounds."""


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
    """Compare selection with random draws in two cases."""
    options = example.options(__doc__, argv)
    draws, limit = (2, 3) if options.quick else (8, 99)
    figure, axes = example.panels(len(CASES), width=3.6, height=3.1)
    rows, first = [], []
    for axis, (title, (sets, system, size, step, most)) in zip(axes, CASES.items(), strict=True):
        rounds = min(most, limit)
        parts = [kqeq.datasets.split(name) for name in sets]
        pool, test = ([atoms for part in parts for atoms in part[i]] for i in (0, 1))
        order = np.random.default_rng(0).permutation(len(pool))
        start = [int(i) for i in (order if system is None else range(len(pool)))]
        start = [i for i in start if system in (None, pool[i].info["system"])][:size]
        sizes = size + step * np.arange(rounds)
        selected, chosen = grow(pool, test, start, step, rounds)
        first.append(", ".join(pool[i].info["system"] for i in chosen[size : size + step]))
        random = []
        for seed in range(draws):
            others = [i for i in np.random.default_rng(seed + 1).permutation(len(pool)) if i not in start]
            random.append([error(pool, [*start, *others[: n - size]], test)[1] for n in sizes])
        random = np.array(random)
        axis.fill_between(
            sizes, random.min(axis=0), random.max(axis=0), color="0.88", label=f"random, {draws} draws"
        )
        axis.plot(sizes, random.mean(axis=0), "--s", color=example.COLOURS["short-range"], label="their mean")
        axis.plot(sizes, selected, "-o", color=example.COLOURS["highlight"], label="chosen by uncertainty")
        axis.set(xlabel="labelled frames", ylabel="test RMSE of the dipole (e·Å)", title=title)
        axis.set_ylim(bottom=0.0)
        axis.legend()
        rows += [
            [title, n, f"{s:.4f}", f"{r.mean():.4f}", f"{r.min():.4f} to {r.max():.4f}"]
            for n, s, r in zip(sizes, selected, random.T, strict=True)
        ]
    header = ["pool", "labelled frames", "chosen by uncertainty", "random, mean", "random, range"]
    notes = (
        "Test RMSE of dipole components, e·Å, QEq with default settings, independent test trajectories. First choices: "
        f"{first[0]}; of the mixed pool: {first[1]}."
    )
    example.finish(options, "08_grow_by_uncertainty", figure, header, rows, notes)


if __name__ == "__main__":
    main()
