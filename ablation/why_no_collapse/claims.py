"""Why SimSiam does not collapse, and what costs it directions: what Chen & He, Tian, Chen & Ganguli, and Li, Efros & Pathak
found, each with its rule in words and the code that judges by it.

Chen & He 2020: arXiv 2011.10566, ImageNet, ResNet-50. Tian, Chen & Ganguli 2021: arXiv 2102.06810, mostly BYOL on STL-10,
ResNet-18; without a moving average it is SimSiam. Li, Efros & Pathak, ECCV 2022: arXiv 2209.15007.

The rules were written before any of these points ran; that of the predictor's rate was turned round since, as it says.
Accuracies are those of a linear classifier on the backbone, on the test images; their differences have 95 % intervals over
seeds and images, or over images alone where there is one seed. RankMe is compared by ratios (`ablation.compare.ratio`): with
one seed, less than a factor of 2 tells nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ablation.claims import Claim, Finding, Untold, long_enough
from ablation.compare import SMALL, Estimate, difference, points, ranked, ratio
from ablation.results import MEASURED, Found, flat

Kind = Literal["complete", "onto few directions", "lost rank", "none"]
Cases = dict[str, list[Found]]  # what was changed -> a result for each seed
Cell = tuple[int, float, float]  # epochs, rate, weight decay
Ranks = dict[str, dict[Cell, list[Found]]]  # method -> what it was trained with -> a result for each seed
FEW = 0.2  # of the default's RankMe of the latents: less is few directions
LOST = 0.5  # of the default's RankMe of the backbone: less is lost rank
DEVIATIONS = 2  # below the default's mean, where its seeds say how they differ
STAGES = ("pretrain", "embed", "linear_eval")
CONTRASTIVE = "simclr"
TO = "recipes."
CHANGES: dict[str, list[dict[str, Any]]] = {  # case -> what it changes, one way or another, below recipes.RECIPE
    "default": [{}],
    "no_stop_gradient": [{"methods.simsiam.target": "none"}, {"stop_gradient": False}],
    "no_predictor": [{"methods.simsiam.predictor": "none"}],
    "fixed_predictor": [{"methods.simsiam.predictor": "fixed"}],
    "linear_predictor": [{"methods.simsiam.predictor": "linear"}],
    "cosine_predictor_lr": [{"methods.simsiam.predictor_lr": "cosine"}],
    "fast_predictor": [{"methods.simsiam.predictor_lr_times": 10.0}],
    "ema": [{"methods.simsiam.target": "ema"}],
    "ema_no_stop_gradient": [{"methods.simsiam.target": "ema", "stop_gradient": False}],
    "no_weight_decay": [{"pretrain.weight_decay": 0.0}],
    "no_head_norm": [{"model.hidden_norm": False}, {"model.hidden_norm": False, "model.latent_norm": False}],
}
WORDS = {
    "default": "the default",
    "no_stop_gradient": "no stop-gradient",
    "no_predictor": "no predictor",
    "fixed_predictor": "a fixed predictor",
    "linear_predictor": "a linear predictor",
    "cosine_predictor_lr": "a predictor whose rate falls",
    "fast_predictor": "a predictor with ten times the rate",
    "ema": "a moving average as target",
    "ema_no_stop_gradient": "a moving average without stop-gradient",
    "no_weight_decay": "no weight decay",
    "no_head_norm": "no BatchNorm in the heads",
}


def trained_with(found: Found) -> dict[str, Any]:
    """All that the training depended on but the seed, by keys without recipes.RECIPE."""
    recipe = f"{TO}{found.params['recipe']}."
    content = {key.removeprefix(recipe): value for key, value in flat(found.params).items() if key != "seed"}
    return {key: value for key, value in content.items() if key.split(".")[0] not in ("data", *MEASURED, "finetune")} | {
        "images": found.result["made_with"]["images"]
    }


def usable(found: list[Found], method: str) -> list[Found]:
    """The results of a method that have gone through all stages, on the images that points share."""
    return [each for each in found if each.params["method"] == method and each.has(*STAGES) and not each.has("download")]


def cases_of(found: list[Found]) -> Cases:
    """SimSiam's default and what differs from it by one of `CHANGES` alone: of all that may be the default, the one that has
    most cases, then most results.
    """
    every = [(each, trained_with(each)) for each in usable(found, "simsiam")]
    best: Cases = {}
    for _, default in every:
        if any(change.items() <= default.items() for ways in CHANGES.values() for change in ways if change):
            continue  # it is a case itself
        cases: dict[str, dict[int, Found]] = defaultdict(dict)
        for each, settings in every:
            differs = {key: value for key, value in settings.items() if default.get(key) != value}
            for case, ways in CHANGES.items():
                if differs in ways:
                    cases[case].setdefault(each.seed, each)
        these = {case: list(cases[case].values()) for case in CHANGES if case in cases}
        best = these if size(these) > size(best) else best
    return best


def ranks_of(found: list[Found]) -> Ranks:
    """Of SimSiam and of the contrastive method, the results that differ in epochs, rate and weight decay alone: of all such
    sets the one with most combinations, then with most results.
    """
    free = ("pretrain.epochs", "pretrain.lr", "pretrain.weight_decay")
    ranks: Ranks = {}
    for method in ("simsiam", CONTRASTIVE):
        groups: dict[str, dict[Cell, list[Found]]] = defaultdict(lambda: defaultdict(list))
        for each in usable(found, method):
            settings = trained_with(each)
            lr = settings.pop(f"methods.{method}.lr") or settings["pretrain.lr"]
            epochs, _, decay = (settings.pop(key) for key in free)
            cell = groups[repr(sorted(settings.items()))][epochs, lr, decay]
            if each.seed not in [other.seed for other in cell]:
                cell.append(each)
        ranks[method] = {}
        for cells in groups.values():
            if size(cells) > size(ranks[method]):
                ranks[method] = dict(cells)
    return ranks


def size(groups: Mapping[Any, list[Found]]) -> tuple[int, int]:
    return len(groups), sum(map(len, groups.values()))


def kind(found: Found, default: Sequence[Found]) -> Kind:
    """Which kind of collapse a training has, beside the default's with each seed.

    Complete and onto one direction as the last training batches' latents say, by z_std and by the first direction's share
    (simsiam/collapse.py). Onto few directions, too, where their RankMe is below a fifth of the default's. It has lost rank
    where none of that is so, but the backbone's RankMe on the test images is below half of the default's. Where the default
    has several seeds, below is also by two deviations.
    """
    if found.verdict == "collapsed to a point":
        return "complete"
    if found.verdict == "collapsed onto one direction" or below(found, default, "pretrain.rankme", FEW):
        return "onto few directions"
    if found.verdict.startswith("losing rank") or below(found, default, "embed.rankme.backbone", LOST):
        return "lost rank"
    return "none"


def below(found: Found, default: Sequence[Found], key: str, share: float) -> bool:
    values = [each.numbers[key] for each in default]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    limit = min(share * float(np.mean(values)), float(np.mean(values)) - DEVIATIONS * deviation)
    return found.numbers[key] < limit


def collapsed(found: Found, default: Sequence[Found]) -> bool:
    return kind(found, default) in ("complete", "onto few directions")


def kinds(found: Sequence[Found], default: Sequence[Found]) -> str:
    """In words: "complete", or "complete (2), none (1)" where seeds disagree."""
    every = [kind(each, default) for each in found]
    return ", ".join(k + f" ({every.count(k)})" * (len(set(every)) > 1) for k in dict.fromkeys(every))


def beside(cases: Cases, case: str) -> tuple[list[Found], list[Found]]:
    """A case's results and the default's."""
    if missing := [WORDS[name] for name in (case, "default") if not cases.get(name)]:
        raise Untold(f"there is no result of {' and '.join(missing)}")
    found, default = cases[case], cases["default"]
    long_enough(found + default)
    return found, default


def seen(found: list[Found], default: list[Found]) -> str:
    """Kind of collapse, and the numbers that tell it, means over seeds."""
    z_std, rank, backbone, knn, random, top1 = (
        float(np.mean([each.numbers[key] for each in found]))
        for key in (
            "pretrain.z_std",
            "pretrain.rankme",
            "embed.rankme.backbone",
            "embed.knn.backbone",
            "embed.knn.random_backbone",
            "linear_eval.backbone.top1",
        )
    )
    words = f"collapse: {kinds(found, default)}; z_std {z_std:.2f}, RankMe {rank:.1f} of the latents, {backbone:.1f} of the "
    return words + f"backbone, kNN {knn:.1%} (random encoder {random:.1%}), linear {top1:.1%}"


def told(found: list[Found], default: list[Found], holds: bool, fails: bool, untold: str, extra: str = "") -> Finding:
    epochs = " or ".join(f"{number:g}" for number in sorted({each.numbers["pretrain.epochs"] for each in found}))
    words = f"{len(found)} trainings of {epochs} epochs: {seen(found, default)}{extra}"
    return Finding(holds, fails, words, f"the default, {len(default)} trainings: {seen(default, default)}", untold)


def gain(found: list[Found], default: list[Found]) -> Estimate:
    """By how much the linear accuracy is above the default's."""
    return difference(*(np.stack([each.right("backbone") for each in of]) for of in (found, default)))


def beside_default(more: Estimate) -> str:
    return f"; linear accuracy less the default's: {points(more)} points"


def collapses(case: str) -> Callable[[Cases], Finding]:
    def judge(cases: Cases) -> Finding:
        found, default = beside(cases, case)
        count, count_default = (sum(collapsed(each, default) for each in of) for of in (found, default))
        holds, fails = count == len(found) and not count_default, not count or count_default == len(default)
        return told(found, default, holds, fails, "some of the trainings collapse, and others do not")

    return judge


def stands(case: str) -> Callable[[Cases], Finding]:
    def judge(cases: Cases) -> Finding:
        found, default = beside(cases, case)
        count = sum(collapsed(each, default) for each in found)
        learned = [each.numbers["embed.knn.backbone"] > each.numbers["embed.knn.random_backbone"] for each in found]
        untold = (
            "some of the trainings collapse" if count else "it does not collapse, but learns no more than a random encoder"
        )
        return told(found, default, not count and all(learned), count == len(found), untold)

    return judge


def learns_less(case: str, *, higher_loss: bool = False) -> Callable[[Cases], Finding]:
    def judge(cases: Cases) -> Finding:
        found, default = beside(cases, case)
        count, more = sum(collapsed(each, default) for each in found), gain(found, default)
        losses, usual = ([each.numbers["pretrain.loss"] for each in of] for of in (found, default))
        high = not higher_loss or min(losses) > max(usual)
        extra = beside_default(more)
        extra += (
            f"; loss {min(losses):.2f} to {max(losses):.2f} (default {min(usual):.2f} to {max(usual):.2f})" * higher_loss
        )
        untold = "some of the trainings collapse" if count else "the interval includes no loss and one that counts"
        untold = "it learns less, but its loss is not above the default's" if more.high < 0 and not count else untold
        fails = count == len(found) or more.low > -SMALL
        return told(found, default, not count and more.high < 0 and high and not fails, fails, untold, extra)

    return judge


def learns_no_more(case: str) -> Callable[[Cases], Finding]:
    def judge(cases: Cases) -> Finding:
        found, default = beside(cases, case)
        count, more = sum(collapsed(each, default) for each in default), gain(found, default)
        holds = not count and more.high < SMALL
        fails = count == len(default) or (more.low > 0 and not holds)
        untold = "some of the defaults collapse" if count else "the interval includes a gain that counts"
        return told(found, default, holds, fails, untold, beside_default(more))

    return judge


def learns_more(case: str) -> Callable[[Cases], Finding]:
    def judge(cases: Cases) -> Finding:
        found, default = beside(cases, case)
        count, more = sum(collapsed(each, default) for each in found), gain(found, default)
        fails = count == len(found) or more.high < SMALL
        untold = "some of the trainings collapse" if count else "the interval includes no gain and one that counts"
        extra = beside_default(more)
        return told(found, default, not count and more.low > 0 and not fails, fails, untold, extra)

    return judge


def keeps_more_directions(cases: Cases) -> Finding:
    found, default = beside(cases, "fast_predictor")
    times = rank_ratio(found, default)
    untold = f"the interval of the ratio of RankMe includes 1{one_seed(found, default)}"
    return told(found, default, times.low > 0, times.high < 0, untold, f"; RankMe {said(times)} of the default's")


def rank_ratio(found: Sequence[Found], other: Sequence[Found]) -> Estimate:
    """Of the backbone's RankMe on the test images."""
    a, b = ([each.numbers["embed.rankme.backbone"] for each in of] for of in (found, other))
    return ratio(a, b)


def said(times: Estimate) -> str:
    low, value, high = np.exp([times.low, times.value, times.high])
    return f"{value:.2f} times ({low:.2f} to {high:.2f})"


def one_seed(*groups: Sequence[Found]) -> str:
    return ", which with one seed is a factor of 2 either way" if min(map(len, groups)) == 1 else ""


def line(ranks: Ranks, method: str, axis: int) -> tuple[dict[float, list[Found]], str]:
    """A method's results by epochs (axis 0), rate (1) or weight decay (2), with the other two fixed, ascending, and these in
    words.

    Of several such lines the one with most values, then that of most epochs, of the highest rate, of most weight decay.
    """
    lines: dict[tuple[float, ...], dict[float, list[Found]]] = defaultdict(dict)
    for cell, found in ranks.get(method, {}).items():
        lines[cell[:axis] + cell[axis + 1 :]][cell[axis]] = found
    others, chosen = max(lines.items(), key=lambda each: (len(each[1]), each[0]), default=((), {}))
    names = ("epochs", "lr", "weight decay")
    if len(chosen) < 2:
        raise Untold(f"{method} was not trained with two values of {names[axis]} that differ in nothing else")
    fixed = [f"{name} {value:g}" for name, value in zip((*names[:axis], *names[axis + 1 :]), others, strict=True)]
    return dict(sorted(chosen.items())), ", ".join(fixed)


def compared(ranks: Ranks, method: str, axis: int) -> tuple[list[Found], list[Found], Estimate, str, str]:
    """Results at the smallest and at the largest value of an axis, the ratio of RankMe from the one to the other, words,
    and those of the control.
    """
    values, fixed = line(ranks, method, axis)
    first, last = min(values), max(values)
    small, large = values[first], values[last]
    times = rank_ratio(large, small)
    rank, knn, random, random_rank = (
        [float(np.mean([each.numbers[key] for each in of])) for of in (small, large)]
        for key in (
            "embed.rankme.backbone",
            "embed.knn.backbone",
            "embed.knn.random_backbone",
            "embed.rankme.random_backbone",
        )
    )
    name = ("epochs", "lr", "weight decay")[axis]
    words = f"{method}, {fixed}: from {name} {first:g} to {last:g} RankMe goes from {rank[0]:.1f} to {rank[1]:.1f}, "
    words += f"{said(times)}, and kNN from {knn[0]:.1%} to {knn[1]:.1%}"
    return small, large, times, words, f"the random encoder has RankMe {random_rank[0]:.1f} and kNN {random[0]:.1%}"


def falls(method: str, axis: int) -> Callable[[Ranks], Finding]:
    def judge(ranks: Ranks) -> Finding:
        small, large, times, words, control = compared(ranks, method, axis)
        untold = f"the interval of the ratio includes 1{one_seed(small, large)}"
        return Finding(times.high < 0, times.low > 0, words, control, untold)

    return judge


def contrastive_keeps(ranks: Ranks) -> Finding:
    small, large, times, words, control = compared(ranks, CONTRASTIVE, 0)
    untold = f"the interval of the ratio includes half{one_seed(small, large)}"
    return Finding(times.high >= 0 and times.low > np.log(LOST), times.high < 0, words, control, untold)


def loss_says_nothing(ranks: Ranks) -> Finding:
    small, large, times, words, control = compared(ranks, "simsiam", 0)
    if times.high >= 0:
        raise Untold("no loss of rank with the epochs is beyond its interval")
    loss, z_std = ([[each.numbers[f"pretrain.{key}"] for each in of] for of in (small, large)] for key in ("loss", "z_std"))
    seen = [each for each in large if each.verdict.startswith("collapsed")]
    words += f"; the loss from {np.mean(loss[0]):.3f} to {np.mean(loss[1]):.3f}, z_std from {np.mean(z_std[0]):.2f} to "
    words += f"{np.mean(z_std[1]):.2f}; {len(seen)} of {len(large)} count as collapsed"
    lower = max(loss[1]) < min(loss[0])
    holds, fails = lower and not seen, min(loss[1]) > max(loss[0]) or len(seen) == len(large)
    return Finding(holds, fails, words, control, "seeds disagree")


def knn_goes_with_rank(ranks: Ranks) -> Finding:
    cells = ranks.get("simsiam", {})
    if len(cells) < 4:
        raise Untold(f"it takes four combinations of epochs, rate and weight decay; there are {len(cells)}")
    rank, knn = (
        np.array([np.mean([each.numbers[key] for each in found]) for found in cells.values()])
        for key in ("embed.rankme.backbone", "embed.knn.backbone")
    )
    rho, p = ranked(rank, knn)
    words = f"Spearman {rho:.2f} (p = {p:.2g}) over {len(cells)} combinations; RankMe {rank.min():.1f} to {rank.max():.1f}, "
    words += f"kNN {knn.min():.1%} to {knn.max():.1%}"
    control = "both may follow the epochs or the rate; with so few the order says little of either"
    return Finding(
        rho > 0 and p < 0.05, rho < 0 and p < 0.05, words, control, f"p = {p:.2g}: by chance so few may be in order"
    )


BOTH_WAYS = (
    "Holds if every training with the change collapses, completely or onto few directions, and none of the default; does "
    "not if none with it does, or every one of the default."
)
LESS = (
    "Holds if no training with the change collapses, and its linear accuracy is below the default's beyond the interval; "
    f"does not if every one collapses, or the interval leaves a loss of less than {100 * SMALL:.0f} point."
)
CLAIMS: dict[str, Claim[Cases]] = {
    "no_stop_gradient": Claim(
        "Without stop-gradient it collapses.",
        "Chen & He, section 4.1, Figure 2: the loss goes to -1, the deviation of the normalised output to 0; 0.1 % (67.7 %)",
        BOTH_WAYS,
        collapses("no_stop_gradient"),
    ),
    "no_predictor": Claim(
        "Without a predictor it collapses.",
        "Chen & He, section 4.2, Table 1a: 0.1 % (67.7 %); Tian, Chen & Ganguli, section 2, after Theorem 2",
        BOTH_WAYS,
        collapses("no_predictor"),
    ),
    "fixed_predictor": Claim(
        "With a predictor that stays random it does not work, though it does not collapse: its loss stays high.",
        "Chen & He, section 4.2, Table 1b: 1.5 % (67.7 %)",
        f"{LESS} It holds only if every loss is also above every one of the default.",
        learns_less("fixed_predictor", higher_loss=True),
    ),
    "cosine_predictor_lr": Claim(
        "A predictor whose rate does not fall, the default here, does as well as one whose rate does, or better.",
        "Chen & He, section 4.2, Table 1c: 68.1 % (67.7 %)",
        "The default was chosen by this on held-out images. Holds if no default collapses and the interval leaves a falling "
        f"rate no gain of {100 * SMALL:.0f} point of linear accuracy; otherwise does not if every default collapses, or the "
        "accuracy is above the default's beyond the interval.",
        learns_no_more("cosine_predictor_lr"),
    ),
    "no_head_norm": Claim(
        "Without BatchNorm in the heads it does not collapse, but learns badly.",
        "Chen & He, section 4.4, Table 3: 34.6 % without, 67.4 % in the hidden layers only, 68.1 % on the latent too",
        LESS,
        learns_less("no_head_norm"),
    ),
    "linear_predictor": Claim(
        "A predictor that is one matrix is enough.",
        "Tian, Chen & Ganguli, section 3, Table 3: without a moving average 72.9 % (two layers: 66.0 %); ImageNet: 68.1 %; "
        "of a matrix that is kept symmetric not: 36.6 %",
        "Holds if no training with it collapses, and kNN is above the random encoder's in every one; does not if every one "
        "collapses.",
        stands("linear_predictor"),
    ),
    "fast_predictor": Claim(
        "A faster predictor leaves more directions in use.",
        "ours, from Tian, Chen & Ganguli, section 3.2, Obs#1: each direction's basin of collapse is smaller; not without "
        "limit, Obs#2. Both are of a linear predictor and no weight decay",
        "Holds if the backbone's RankMe is above the default's beyond the interval; does not if below beyond it.",
        keeps_more_directions,
    ),
    "ema": Claim(
        "A moving average as the target makes it better.",
        "Tian, Chen & Ganguli, section 3, Table 3, two layers: 78.9 % with it, 66.0 % without",
        "Holds if no training with it collapses and its linear accuracy is above the default's beyond the interval; does "
        f"not if every one collapses, or the interval leaves a gain of less than {100 * SMALL:.0f} point.",
        learns_more("ema"),
    ),
    "ema_no_stop_gradient": Claim(
        "A moving average does not take the place of the stop-gradient: without it, it collapses.",
        "Tian, Chen & Ganguli, section 1: with one of predictor and stop-gradient left out, BYOL and SimSiam collapse. Here "
        "the target has the average's value and the gradient of the encoder's own latent",
        BOTH_WAYS,
        collapses("ema_no_stop_gradient"),
    ),
    "no_weight_decay": Claim(
        "Without weight decay it does not collapse, but learns less.",
        "Tian, Chen & Ganguli, section 2, Table 2: without a moving average 71.4 %, with weight decay 72.9 % (Table 3), "
        "both with a linear predictor",
        LESS,
        learns_less("no_weight_decay"),
    ),
}
RANK_CLAIMS: dict[str, Claim[Ranks]] = {
    "longer_loses_rank": Claim(
        "SimSiam with a small network loses directions as it trains longer.",
        "Li, Efros & Pathak, abstract: it collapses in some dimensions where the network is small for its images; that "
        "epochs bring it on: ours, from what was seen by hand before the study",
        "The most epochs are compared with the fewest, at the highest rate. Holds if the backbone's RankMe is lower beyond "
        "the interval; does not if higher beyond it.",
        falls("simsiam", 0),
    ),
    "contrastive_keeps_rank": Claim(
        "A contrastive method does not.",
        "ours, from what was seen by hand before the study",
        "SimCLR, likewise. Does not hold if RankMe is lower beyond the interval; holds if it is not, and the interval "
        "excludes half.",
        contrastive_keeps,
    ),
    "loss_says_nothing": Claim(
        "Neither its loss nor z_std shows it.",
        "ours, from what was seen by hand before the study",
        "Where SimSiam loses rank with the epochs: holds if every loss at the most epochs is below every one at the fewest, "
        "and none counts as collapsed; does not if every loss is above, or every training counts as collapsed.",
        loss_says_nothing,
    ),
    "higher_rate_loses_rank": Claim(
        "It loses more of them at a higher rate.",
        "ours, from what was seen by hand before the study",
        "The highest rate is compared with the lowest, at the most epochs. The same rule.",
        falls("simsiam", 1),
    ),
    "weight_decay_loses_rank": Claim(
        "It loses more of them with more weight decay.",
        "Tian, Chen & Ganguli, section 3.2, Obs#4 and #5: the basin of collapse grows with it, at last to everything",
        "The most weight decay is compared with the least. The same rule.",
        falls("simsiam", 2),
    ),
    "knn_goes_with_rank": Claim(
        "What can be read out goes with the directions in use.",
        "Li, Efros & Pathak, abstract: their measure of collapse forecasts accuracy",
        "Over SimSiam's combinations of epochs, rate and weight decay, means over seeds: holds if Spearman's correlation of "
        "the backbone's RankMe and kNN is positive with p < .05 (by permutation), does not if negative with p < .05. It "
        "takes four combinations.",
        knn_goes_with_rank,
    ),
}
