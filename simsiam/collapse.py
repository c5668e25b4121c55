"""Collapse, told from training batches: latents all at one point, or all on one line; features that lose their rank.

What is judged is measured by `simsiam.spread`. None of this judges images in evaluation mode: there an untrained encoder
looks collapsed (z_std .24, first_share .93).
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

Verdict = Literal["healthy", "collapsed to a point", "collapsed onto one direction", "views too alike", "losing rank"]

POINT = 0.3  # z_std below this
LINE = 0.95  # first_share above this, on a scale from an even spread, 1/d, to a line
NEARLY = {"dim": 32, "rankme": 3.0, "first_share": 0.75}  # or, from so many dimensions on, below the one and above the other
ALIKE = 0.04  # loss less than this above the lowest that the method has, and a latent that is neither
LOST = 0.5  # RankMe of the backbone's features below this share of what it was
RECORDS = 3  # that are judged together
JUDGED = ("loss", "z_std", "first_share", "rankme", "backbone_rankme")


def judge(z_std: float, first_share: float, rankme: float, loss: float, *, dim: int, lowest_loss: float | None) -> Verdict:
    """What numbers of training batches say of latents with `dim` dimensions. NaN counts as healthy: the loss tells then.

    The thresholds were chosen on 68 small trainings, up to 2,400 steps, with and without stop-gradient, BatchNorm on the
    latent and augmentation, batches of 16 to 512, d = 2 to 2048. 14 more, with other seeds, were then judged as they should.
    - z_std tells a point: at .3 the mean has 91 % of the squared length. Healthy runs stay above .36.
    - BatchNorm on the latent allows no point. It ends with some images opposite to all others, at the least one in a batch
      of B: z_std is then 2 / sqrt(B), .5 at 16, and the more images the higher. So first_share tells a line. Healthy runs
      reach .96 at d = 2 and 4 (one batch .98), .82 at 8, .69 from 32 on; lines mostly end at .98 to 1.
    - Where such a collapse is slow, in batches of 16, the share stays below .95 for thousands of steps, but RankMe is at 2
      to 3; healthy runs have 6 and more from d = 32 on. Alone it tells nothing: with noise in the other directions points
      have up to 5, and below d = 8 healthy runs 1.3.
    - Views that are too alike leave the latent healthy and the loss of SimSiam, whose lowest is -1, at -.975 to -1. Healthy
      runs had -.90 at the lowest here; one report of ImageNet has -.94. A method that names no `lowest_loss` is not judged.
    """
    line = first_share > 1 / dim + LINE * (1 - 1 / dim)
    nearly = dim >= NEARLY["dim"] and rankme < NEARLY["rankme"] and first_share > NEARLY["first_share"]
    # Not a point where most of the spread lies along the axis: then both of its ends are in use.
    if z_std < POINT and z_std**2 < 2 * (1 - first_share) + 1e-6:
        return "collapsed to a point"
    if z_std < POINT or line or nearly:
        return "collapsed onto one direction"
    return "views too alike" if lowest_loss is not None and loss < lowest_loss + ALIKE else "healthy"


def of_run(
    records: Sequence[Mapping[str, float]], dim: int, lowest_loss: float | None, *, labelled: bool = False
) -> Verdict:
    """Judge a training, running or ended, by the medians of its last three records.

    One batch may say anything, at d = 2 most of all. Fewer than three records say nothing yet, which counts as healthy.
    Where `judge` finds nothing, "losing rank" is RankMe of the backbone's features below half of the highest that such a
    median has had in the run, with a lower loss than there: the partial collapse that Li, Efros & Pathak (ECCV 2022) found.
    Not of a method that is `labelled`: as many directions as there are classes are what it ends with where all goes well.

    That share was chosen on seven trainings of the `laptop` network on CIFAR-10 without BatchNorm on the latent, 1,200 to
    3,400 steps. The lowest that it came to was .94 at d = 2048 and rates of .2 to .8 (10,000 images), .79 at d = 512 and .57
    at d = 2, rate .4 (44,000). At
    rates of .8 and 1.6, d = 512, it came to .36 and .19; RankMe of held-out images was 18 and 5.5 at the end instead of 65,
    while z_std was .72 and .74 and the loss as low as elsewhere. The latent's own rank does not tell them apart: it fell to
    .31 of its highest at d = 512, rate .4, to .20 and .29 in these.
    """
    if len(records) < RECORDS:
        return "healthy"
    last, best = _median(records, len(records)), best_rank(records)
    verdict = judge(last["z_std"], last["first_share"], last["rankme"], last["loss"], dim=dim, lowest_loss=lowest_loss)
    lost = last["backbone_rankme"] < LOST * best["backbone_rankme"] and last["loss"] < best["loss"]
    return "losing rank" if verdict == "healthy" and lost and not labelled else verdict


def best_rank(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The medians of those three successive records, of three or more, whose median RankMe of the backbone is highest."""
    ranks = [record["backbone_rankme"] for record in records]
    return _median(records, max(range(RECORDS, len(records) + 1), key=lambda end: median(ranks[end - RECORDS : end])))


def words(verdict: Verdict, records: Sequence[Mapping[str, float]], *, stop_gradient: bool = True) -> str:
    """One line for a user: what was seen in the training's records, the last one's numbers; what it means, what to try."""
    record = records[-1]
    seen = f"z_std {record['z_std']:.2f}, first direction {record['first_share']:.1%}, RankMe {record['rankme']:.1f}"
    tries = "try a larger batch_size or latent_dim, or a smaller lr"
    remedy = tries if stop_gradient else "no wonder: stop_gradient is off"
    if verdict == "losing rank":
        best, now = best_rank(records)["backbone_rankme"], _median(records, len(records))["backbone_rankme"]
        return (
            f"LOSING RANK: RankMe of the backbone's features was {best:.0f} and is {now:.0f}, though the loss falls and the "
            f"latent is healthy ({seen}): they use ever fewer directions; try a smaller lr, fewer epochs or a wider network"
        )
    return {
        "healthy": f"the latent is healthy ({seen})",
        "collapsed to a point": f"COLLAPSED to a point: all images have nearly the same latent ({seen}); {remedy}",
        "collapsed onto one direction": f"COLLAPSED onto one direction: latents differ in sign at most ({seen}); {remedy}",
        "views too alike": f"VIEWS TOO ALIKE: a loss of {record['loss']:.3f} leaves little to learn, "
        f"and the latent is healthy ({seen}); try stronger augmentation: a smaller crop_scale, more jitter",
    }[verdict]


def _median(records: Sequence[Mapping[str, float]], end: int) -> dict[str, float]:
    """The median of what is judged over the three records before `end`."""
    return {name: median(record[name] for record in records[end - RECORDS : end]) for name in JUDGED}
