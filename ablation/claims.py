"""A claim that results are put to: its rule in words, and the code that judges by it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from ablation.results import Found
from simsiam.collapse import RECORDS

T = TypeVar("T")


class Finding(NamedTuple):
    """What the results say of a claim."""

    holds: bool
    fails: bool
    words: str
    control: str  # what an encoder does that learned nothing, or the one that it is compared with
    untold: str  # why it cannot be told, where it neither holds nor fails


class Claim(NamedTuple, Generic[T]):
    claim: str
    where: str  # in the paper, with its numbers
    rule: str
    judge: Callable[[T], Finding]  # raises Untold


class Untold(Exception):
    """The results have not what the rule asks for: the message says what."""


def long_enough(found: Iterable[Found]) -> None:
    """Raises Untold where a training is too short for its collapse to be seen."""
    if any(len(each.arrays["curve_step"]) < RECORDS for each in found):
        raise Untold(f"the trainings are too short: it takes {RECORDS} records of 50 steps or so to see a collapse")


def judged(claims: Mapping[str, Claim[T]], results: T) -> list[dict[str, str]]:
    """Every claim with what was found and its verdict, for the page."""
    rows = []
    for name, claim in claims.items():
        try:
            holds, fails, words, control, untold = claim.judge(results)
        except Untold as error:
            holds, fails, words, control, untold = False, False, "", "", str(error)
        verdict = "holds" if holds else "does not hold" if fails else "cannot be told"
        row = {"name": name, "claim": claim.claim, "where": claim.where, "rule": claim.rule, "finding": words}
        rows.append(row | {"control": control, "verdict": verdict, "reason": "" if holds or fails else untold})
    return rows
