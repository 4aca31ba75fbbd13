"""Published comparisons, run again: the direction and size of each effect beside the paper's.

``make bench-published`` writes docs/benchmarks/published.{json,md,png}; ``ARGS=--quick`` takes one
seed and few rounds. The tasks run in processes of their own, two at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comparisons
import numpy as np
from report import FOLDER, Row, figure, versions_of, write
from seeds import Key, Samples, run_tasks

import fedjax_secure as fs

STRAGGLERS = (0.0, 0.5, 0.9)
LIKENESS: dict[str, float | None] = {"IID": None, "(0, 0)": 0.0, "(1, 1)": 1.0}
SKEWS = ((0.0, 1), (0.0, 5), (0.0, 20), (0.1, 1), (0.1, 20))  # similarity, local epochs
RATES = {1: (0.3, 1.0), 5: (0.1, 0.3), 20: (0.03, 0.1)}  # by local epochs
SGD_RATES = (1.0, 3.0)
TARGET = 0.9
ALPHAS = (0.01, 100.0)
SERVER_RATES = {"FedAvg": (0.1, 0.3, 1.0), "FedAvgM": (0.01, 0.03, 0.1)}
LAMBDAS = (0.0, 0.1, 1.0)

FED_AVG, SCAFFOLD, SGD, FED_AVG_M = "FedAvg", "SCAFFOLD", "SGD, one step a round", "FedAvgM"
PROX_0, PROX_1, ALONE = "FedProx, mu 0", "FedProx, mu 1", "each client alone"
FAIR = "q-FedAvg: synthetic(1, 1)"
DITTO = "Ditto: digits, Dirichlet alpha 0.3"
PERCENT, POINTS, VARIANCE = "%", "points", "points squared"
ROUNDS = f"rounds to {TARGET:.0%}"


class Size(NamedTuple):
    """How long the comparisons run."""

    seeds: int
    prox_rounds: int
    scaffold_rounds: int
    server_rounds: int
    fair_rounds: int
    personal_rounds: int


FULL = Size(3, 60, 150, 100, 1000, 40)
QUICK = Size(1, 10, 20, 20, 50, 10)


def prox_case(likeness: str, share: float) -> str:
    """The name of FedProx's case."""
    return f"FedProx: synthetic {likeness}, {share:.0%} stragglers"


def scaffold_case(similarity: float, epochs: int) -> str:
    """The name of SCAFFOLD's case."""
    length = f"{epochs} local epoch{'s' if epochs > 1 else ''}"
    return f"SCAFFOLD: digits, {similarity:.0%} similarity, {length}"


def momentum_case(alpha: float) -> str:
    """The name of FedAvgM's case."""
    return f"FedAvgM: digits, Dirichlet alpha {alpha:g}"


# -- tasks: what one process does ------------------------------------------------------------------


def fed_prox(seed: int, size: Size) -> Samples:
    """Stragglers and unlike clients: FedAvg, FedProx with mu 0 and with mu 1."""
    found: Samples = {}
    cases = [("(1, 1)", share) for share in STRAGGLERS]
    cases += [(likeness, 0.9) for likeness in LIKENESS if likeness != "(1, 1)"]
    for likeness, share in cases:
        for name, mu in ((FED_AVG, None), (PROX_0, 0.0), (PROX_1, 1.0)):
            if name == PROX_0 and (share == 0 or likeness != "(1, 1)"):
                continue  # without stragglers, FedProx with mu 0 is FedAvg
            run = comparisons.fed_prox_run(
                seed, alpha=LIKENESS[likeness], stragglers=share, mu=mu, rounds=size.prox_rounds,
                sizes=comparisons.capped_sizes(30, most=1000))  # fmt: skip
            case = prox_case(likeness, share)
            found[case, name, "accuracy", PERCENT] = [run["accuracy"]]
            found[case, name, "its swing from round to round", POINTS] = [run["swing"]]
            found[case, name, "training loss", "nats"] = [run["training loss"]]
    return found


def scaffold(number: int, size: Size) -> Samples:
    """Rounds to an accuracy in one of the settings of ``SKEWS``; rates are tuned on seed 0."""
    found: Samples = {}
    similarity, epochs = SKEWS[number]
    deals = [comparisons.digits_with_similarity(50, similarity, seed=s) for s in range(size.seeds)]

    def needed(name: str, rate: float, seed: int) -> float:
        # The paper's SGD takes one step a round over all records of the round's clients.
        batch = len(deals[seed].y) if name == SGD else 6
        algorithm = comparisons.local_method(
            name, rate, epochs=1 if name == SGD else epochs, batch_size=batch)
        return comparisons.rounds_to_accuracy(
            deals[seed], algorithm, target=TARGET, rounds=size.scaffold_rounds, clients=10,
            seed=seed)  # fmt: skip

    for name in (*((SGD,) if epochs == 1 else ()), FED_AVG, SCAFFOLD):
        first = {rate: needed(name, rate, 0) for rate in
                 (SGD_RATES if name == SGD else RATES[epochs])}  # fmt: skip
        best = min(first, key=first.__getitem__)
        others = [needed(name, best, seed) for seed in range(1, size.seeds)]
        found[scaffold_case(similarity, epochs), name, ROUNDS, "rounds"] = [first[best], *others]
    return found


def momentum(alpha: float, size: Size) -> Samples:
    """Server momentum under label skew; rates are tuned on seed 0."""
    found: Samples = {}
    for name, made in ((FED_AVG, fs.algorithms.fed_avg), (FED_AVG_M, fs.algorithms.fed_avg_m)):

        def accuracy(rate: float, seed: int, made: Any = made) -> float:
            algorithm = made(rate, local_epochs=1, batch_size=64)
            return comparisons.server_run(
                seed, algorithm, alpha=alpha, rounds=size.server_rounds, clients=5, num_clients=100)

        first = {rate: accuracy(rate, 0) for rate in SERVER_RATES[name]}
        best = max(first, key=first.__getitem__)
        others = [accuracy(best, seed) for seed in range(1, size.seeds)]
        found[momentum_case(alpha), name, "accuracy", PERCENT] = [first[best], *others]
    return found


def fairness(seed: int, size: Size) -> Samples:
    """q-FedAvg: more even accuracies."""
    found: Samples = {}
    for q in (0.0, 1.0):
        run = comparisons.fairness_run(
            seed, q=q, rounds=size.fair_rounds, sizes=comparisons.capped_sizes(50, most=200))
        found |= _spread(FAIR, f"q = {q:g}", run)
    return found


def personal(seed: int, size: Size) -> Samples:
    """Ditto: personal models, beside the global one and each client alone."""
    found: Samples = {}
    for lam in LAMBDAS:
        run = comparisons.personal_run(seed, lam=lam, rounds=size.personal_rounds)
        if not lam:
            found |= _spread(DITTO, FED_AVG, run["global"])
        found |= _spread(DITTO, f"Ditto, lambda {lam:g}" if lam else ALONE, run["personal"])
    return found


def _spread(case: str, system: str, figures: Mapping[str, float]) -> Samples:
    return {(case, system, metric, VARIANCE if "variance" in metric else PERCENT): [value]
            for metric, value in figures.items()}  # fmt: skip


def tasks_of(size: Size) -> list[tuple[str, float]]:
    """The tasks: a function's name and its first argument; seeds of a case follow each other."""
    seeds = range(size.seeds)
    return [*(("fed_prox", seed) for seed in seeds), *(("scaffold", i) for i in range(len(SKEWS))),
            *(("momentum", alpha) for alpha in ALPHAS), *(("fairness", seed) for seed in seeds),
            *(("personal", seed) for seed in seeds)]  # fmt: skip


def run_task(name: str, argument: float, quick: bool) -> Samples:
    """Runs one task, in a process of its own."""
    task: Callable[..., Samples] = globals()[name]
    return task(argument, QUICK if quick else FULL)


# -- effects, beside the papers' -------------------------------------------------------------------


class Effect(NamedTuple):
    """One published effect and ours.

    Attributes:
        ratio: its key among the report's ratios.
        claim: what the paper says, in words; more than ``bound`` means that ours agrees.
        published: the paper's figure and where it stands; "direction only" where we could not
            check a figure.
        case, system, other, metric: ours is the mean over seeds of the system's figure compared
            with the other's.
        ratio_of: whether the two are divided instead of subtracted (system over other).
        bound: 0 for a difference, 1 for a ratio.
    """

    ratio: str
    claim: str
    published: str
    case: str
    system: str
    other: str
    metric: str
    ratio_of: bool = False

    @property
    def bound(self) -> float:
        return 1.0 if self.ratio_of else 0.0


PROX_PAPER = (
    '"in highly heterogeneous settings [...] improving absolute test accuracy by 22% on average" '
    "(abstract of arXiv 1812.06127; README of litian96/FedProx)"
)
SCAFFOLD_PAPER = (
    'direction only: "requires significantly fewer communication rounds" (abstract of '
    "arXiv 1910.06378)"
)
MOMENTUM_PAPER = (
    "from 30.1% to 76.9% on CIFAR-10 in the most skewed setting, 46.8 points (abstract of "
    "arXiv 1909.06335)"
)
FAIR_PAPER = (
    'direction only: "a more fair (specifically, a more uniform) accuracy distribution across '
    'devices" (abstract of arXiv 1905.10497)'
)
DITTO_PAPER = (
    'direction only: "more accurate, robust, and fair models" (abstract of arXiv 2012.04221)'
)


def effects() -> list[Effect]:
    """The published effects, in the order of the page."""
    made = [
        Effect(f"fed_prox_mu_1_gain_{round(100 * share)}_stragglers",
               f"FedProx (mu 1) is more accurate than FedAvg, {share:.0%} stragglers, points",
               PROX_PAPER if share == 0.9 else "direction only",
               prox_case("(1, 1)", share), PROX_1, FED_AVG, "accuracy")
        for share in reversed(STRAGGLERS)
    ]
    swing = "its swing from round to round"
    made += [
        Effect("fed_prox_mu_0_gain_90_stragglers",
               "Sending partial work (FedProx, mu 0) beats dropping it (FedAvg), 90% stragglers, "
               "points", "direction only", prox_case("(1, 1)", 0.9), PROX_0, FED_AVG,
               "accuracy"),
        Effect("fed_prox_steadier_90_stragglers",
               "FedProx (mu 1) is steadier: FedAvg's swing over its own, 90% stragglers",
               'direction only: "significantly more stable"', prox_case("(1, 1)", 0.9), FED_AVG,
               PROX_1, swing, True),
    ]
    for similarity, epochs in SKEWS:
        made.append(Effect(
            f"scaffold_fewer_rounds_{round(100 * similarity)}_similarity_{epochs}_epochs",
            f"SCAFFOLD needs fewer rounds, {similarity:.0%} similarity, local epochs {epochs}: "
            "FedAvg's over its own", SCAFFOLD_PAPER, scaffold_case(similarity, epochs),
            FED_AVG, SCAFFOLD, ROUNDS, True))
    for alpha in ALPHAS:
        made.append(Effect(
            f"fed_avg_m_gain_alpha_{alpha:g}",
            f"FedAvgM is more accurate than FedAvg, Dirichlet alpha {alpha:g}, points",
            MOMENTUM_PAPER if alpha == min(ALPHAS) else "direction only",
            momentum_case(alpha), FED_AVG_M, FED_AVG, "accuracy"))
    made += [
        Effect("q_fed_avg_variance", "q-FedAvg (q = 1) has less variance over clients: that of "
               "q = 0 over its own", FAIR_PAPER, FAIR, "q = 0", "q = 1", "variance", True),
        Effect("q_fed_avg_training_variance", "The same on training records", FAIR_PAPER, FAIR,
               "q = 0", "q = 1", "variance, training", True),
        Effect("q_fed_avg_worst_gain", "q-FedAvg (q = 1) serves the worst tenth better, points",
               FAIR_PAPER, FAIR, "q = 1", "q = 0", "worst 10%"),
        Effect("ditto_gain_over_fed_avg", "Ditto (lambda 1) is more accurate than FedAvg's "
               "global model, points", DITTO_PAPER, DITTO, "Ditto, lambda 1", FED_AVG,
               "average"),
        Effect("ditto_variance", "Ditto (lambda 1) is more even: FedAvg's variance over its own",
               DITTO_PAPER, DITTO, FED_AVG, "Ditto, lambda 1", "variance", True),
        Effect("ditto_gain_over_alone", "Ditto (lambda 1) is more accurate than each client "
               "alone, points", DITTO_PAPER, DITTO, "Ditto, lambda 1", ALONE, "average"),
    ]
    return made


def compared(effect: Effect, samples: Mapping[Key, Sequence[float]]) -> np.ndarray:
    """Ours, for each seed: ``[seeds]``. Both systems of a seed have the same data and cohorts."""

    def of(system: str) -> np.ndarray:
        return np.array(next(values for key, values in samples.items()
                             if key[:3] == (effect.case, system, effect.metric)))

    one, other = of(effect.system), of(effect.other)
    return one / np.maximum(other, 1e-9) if effect.ratio_of else one - other


def ratios_of(samples: Mapping[Key, Sequence[float]]) -> dict[str, float]:
    """The effects by name: means over seeds of differences (``_gain_``) and quotients."""
    return {e.ratio: float(f"{compared(e, samples).mean():.6g}") for e in effects()}


def table(samples: Mapping[Key, Sequence[float]]) -> str:
    """The effects as a Markdown table: theirs, ours, and whether the direction agrees."""
    lines = ["| the paper's claim | published | ours: mean over seeds (standard deviation) | "
             "direction |", "|---|---|---|---|"]
    for effect in effects():
        ours = compared(effect, samples)
        told = f"{_signed(float(ours.mean()), effect)} ({figure(float(ours.std()))})"
        agrees = "the same" if ours.mean() > effect.bound else "**not seen**"
        if ours.mean() > effect.bound >= ours.min():
            agrees = "the same on average, not for every seed"
        lines.append(f"| {effect.claim} | {effect.published} | {told} | {agrees} |")
    return "\n".join(lines)


def _signed(value: float, effect: Effect) -> str:
    if effect.ratio_of:
        return f"{figure(value)} times"
    return f"{'+' if value >= 0 else '-'}{figure(abs(value))}"


# -- the picture -----------------------------------------------------------------------------------


class Bars(NamedTuple):
    """One part of the picture: groups of bars, one bar a system, whiskers over the seeds.

    Attributes:
        title, unit: of the part.
        groups: label, case and metric of each group.
        systems: of every group, with their colours.
    """

    title: str
    unit: str
    groups: Sequence[tuple[str, str, str]]
    systems: Mapping[str, str]


GREY, SAND, BLUE = "#8d877b", "#cbb88f", "#1f6f8b"


def parts() -> list[Bars]:
    """The parts of the picture."""
    prox = {FED_AVG: GREY, PROX_0: SAND, PROX_1: BLUE}
    return [
        Bars("FedProx: synthetic(1, 1), by stragglers", "accuracy, %",
             [(f"{s:.0%}", prox_case("(1, 1)", s), "accuracy") for s in STRAGGLERS], prox),
        Bars("FedProx: 90% stragglers, by data", "accuracy, %",
             [(name, prox_case(name, 0.9), "accuracy") for name in LIKENESS], prox),
        Bars("SCAFFOLD: by similarity and local epochs", ROUNDS,
             [(f"{s:.0%}, {e}", scaffold_case(s, e), ROUNDS) for s, e in SKEWS],
             {SGD: SAND, FED_AVG: GREY, SCAFFOLD: BLUE}),
        Bars("FedAvgM: digits, by Dirichlet alpha", "accuracy, %",
             [(f"{alpha:g}", momentum_case(alpha), "accuracy") for alpha in ALPHAS],
             {FED_AVG: GREY, FED_AVG_M: BLUE}),
        Bars("q-FedAvg: synthetic(1, 1), clients' accuracy", "accuracy, %",
             [(metric, FAIR, metric) for metric in ("worst 10%", "average", "best 10%")],
             {"q = 0": GREY, "q = 1": BLUE}),
        Bars("Ditto: digits, Dirichlet alpha 0.3", "accuracy, %",
             [(metric, DITTO, metric) for metric in ("worst 10%", "average")],
             {FED_AVG: GREY, ALONE: SAND, "Ditto, lambda 0.1": "#7fb0c2",
              "Ditto, lambda 1": BLUE}),
    ]  # fmt: skip


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draws the rows of a report."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = {(row["case"], row["system"], row["metric"]): row for row in report["rows"]}
    drawing, axes = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axis, part in zip(axes.flat, parts(), strict=True):
        width = 0.8 / len(part.systems)
        for j, (system, colour) in enumerate(part.systems.items()):
            label: str | None = system
            for i, (_, case, metric) in enumerate(part.groups):
                row = rows.get((case, system, metric))
                if row is None:
                    continue
                place = i + (j - (len(part.systems) - 1) / 2) * width
                axis.bar(place, row["median"], 0.92 * width, color=colour, label=label)
                axis.plot([place, place], [row["min"], row["max"]], color="#333333", linewidth=1.2)
                label = None
        axis.set_xticks(range(len(part.groups)), [name for name, _, _ in part.groups])
        axis.set_ylabel(part.unit)
        axis.set_title(part.title, fontsize=11, loc="left")
        if "accuracy" in part.unit:
            axis.set_ylim(0, 112)
        else:
            axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
        axis.legend(fontsize=8, frameon=False, ncols=len(part.systems), loc="upper left",
                    handlelength=1.0, columnspacing=1.0)  # fmt: skip
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    drawing.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(drawing)


# -- the run ---------------------------------------------------------------------------------------


def about(size: Size, samples: Mapping[Key, Sequence[float]], note: str) -> list[str]:
    """What is the papers' and what is ours, and the effects beside the papers'."""
    return [
        *([note] if note else []),
        "Five published comparisons, run with `fs.Simulation` on data that this package ships or "
        f"makes; {size.seeds} seed{'s' if size.seeds > 1 else ''} each (of data, deal, cohorts "
        "and, for the MLP, its first parameters). Figures in the tables below are medians over "
        "seeds (lowest to highest). A published figure is quoted where it could be read in the "
        "paper's abstract or in its authors' repository, and is of other data than ours wherever "
        "the paper's data do not lie here: compare directions, and sizes only roughly.",
        "![The figures as bars; lines from the lowest to the highest seed](published.png)",
        "## Effects beside the papers'",
        table(samples),
        "## What is the papers', and what is ours",
        "**FedProx** (Li et al. 2020). The paper's, from its authors' scripts: synthetic data of "
        "30 clients, 10 a round drawn uniformly, 20 local epochs, batches of 10, learning rate "
        "0.01, mu 1, weights by examples, stragglers who finish 1 to 19 whole epochs and whom "
        f"FedAvg drops. Ours: {size.prox_rounds} rounds instead of 200, no client above 1,000 "
        "records, and figures that are means over the last fifth of the rounds. On IID data "
        f"mu 1 only slows training down: it is {figure(abs(_iid_loss(samples)))} points "
        f"{'below' if _iid_loss(samples) > 0 else 'above'} FedAvg with 90% stragglers.",
        "**SCAFFOLD** (Karimireddy et al. 2020). The paper's: logistic regression, an epoch of "
        "five steps (batches of a fifth of a client), 20% of the clients a round, server step 1, "
        "each method's learning rate tuned, and the rounds until the model first reaches an "
        "accuracy. Ours: 1,437 digits of 8x8 pixels, 50 clients, instead of EMNIST and 100; "
        f"{TARGET:.0%} instead of 50%; rates out of {RATES} by epochs and {SGD_RATES} for SGD, "
        f"tuned on seed 0; {size.scaffold_rounds} stands for not reached.",
        "**FedAvgM** (Hsu et al. 2019). The paper's, as Flower's baseline of it records them "
        "(adap/flower, baselines/fedavgm): 100 clients of a Dirichlet partition, 5 of them a "
        "round, one local epoch, batches of 64, momentum 0.9. Ours: digits and an MLP with 64 "
        f"hidden units instead of CIFAR-10 and a CNN, {size.server_rounds} rounds instead of "
        f"10,000, learning rates out of {SERVER_RATES}, tuned on seed 0 for each alpha (FedAvgM "
        "adds up to ten times its change). Means over the last tenth of the rounds. The effect is "
        "far weaker than the paper's because these digits are easy: FedAvg alone nearly solves "
        "them once its rate is tuned, which leaves little to mend.",
        "**q-FedAvg** (Li et al. 2020). The paper's, from its authors' scripts: 100 clients of "
        "synthetic(1, 1), 10 a round, one local epoch, 20,000 rounds. Ours: 50 clients, none above "
        f"200 records, of which a fifth are held out; {size.fair_rounds:,} rounds of all clients, "
        "with one step each over all records, learning rate 0.3. The more local steps, the shorter "
        "the step that the paper's rule allows for q = 1: with the authors' ten-record batches "
        "1,000 rounds of q = 1 lagged far behind q = 0, and showed no gain yet.",
        "**Ditto** (Li et al. 2021). Ours: 1,437 digits dealt to 30 clients by a Dirichlet "
        "partition, logistic regression, 6 clients a round, 2 local epochs, learning rate 0.1, "
        f"batches of 10, {size.personal_rounds} rounds; each client alone is Ditto with lambda 0, "
        "as in the authors' repository. A client's held-out digits have its own mixture of "
        "classes.",
        "## What else was tried",
        TRIED,
    ]


def _iid_loss(samples: Mapping[Key, Sequence[float]]) -> float:
    """By how many points FedProx (mu 1) lies below FedAvg on IID data, 90% stragglers."""
    case = prox_case("IID", 0.9)
    return float(np.mean(samples[case, FED_AVG, "accuracy", PERCENT])
                 - np.mean(samples[case, PROX_1, "accuracy", PERCENT]))  # fmt: skip


#: Said on the page, because settings that were chosen by their results flatter them.
TRIED = (
    "Our own settings were not fixed beforehand, and were tried on the same seeds. These showed "
    "other results, three seeds each. FedProx with at most 200 records a client and 50 rounds: mu "
    "1 was 12.3 points above FedAvg with 90% stragglers, but 1.2 below it with none. FedAvgM with "
    "five local epochs, 50 rounds and rates a third as large: 3.5 points above FedAvg at alpha "
    "0.01, but 3.9 below it at alpha 100. q-FedAvg stopped after 400 rounds at rate 0.1 with 100 "
    "clients: q = 1 had not caught up, and q = 0's variance was 0.86 of its own. Ditto on "
    "two label shards a client: 20 clients with mostly two digits each do as well alone (98.0%) "
    "as with lambda 1 (97.1%), and both are far above FedAvg (87.3%)."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, print progress, and write docs/benchmarks/published.*."""
    parser = argparse.ArgumentParser(description="Published comparisons, run again.")
    parser.add_argument("--quick", action="store_true", help="one seed and few rounds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", nargs="+", default=(), help="tasks to run; writes nothing")
    parser.add_argument("--keep", type=Path, help="a folder from which a cut-off run goes on")
    parser.add_argument("--note", default="", help="a first paragraph for the page")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s {text}", flush=True)

    size = QUICK if options.quick else FULL
    tasks = [(*task, options.quick) for task in tasks_of(size)
             if not options.only or task[0] in options.only]  # fmt: skip
    samples = run_tasks(run_task, tasks, jobs=options.jobs, log=log, keep=options.keep)
    if options.only:
        return
    quick = "A quick run: one seed and few rounds, which show no effect." if options.quick else ""
    rows = [Row.of(case, system, metric, values, unit)
            for (case, system, metric, unit), values in samples.items()]  # fmt: skip
    path = write(
        "published", title="Published comparisons, run again",
        about=about(size, samples, " ".join(filter(None, [options.note, quick]))), rows=rows,
        ratios=ratios_of(samples),
        versions=versions_of("jax", "jaxlib", "numpy", "flax", "optax"),
        folder=options.folder,
    )  # fmt: skip
    report = json.loads(path.read_text(encoding="utf-8"))
    report["seeds"] = [[*key, values] for key, values in samples.items()]
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(report, path.with_suffix(".png"))
    log(f"wrote {path}")


if __name__ == "__main__":
    main()
