"""Whether a challenger is better than the champion: the three conditions, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from glacier_core.errors import InputError
from glacier_core.files import whole_file, write_json
from glacier_core.model.bootstrap import (
    Interval,
    Matrices,
    class_ious,
    mean_ice_iou,
    paired_interval,
    units_needed,
)
from glacier_core.model.figures import COLOURS, save
from glacier_core.params import PromotionParams

MEAN_ICE = "mean_ice"

Outcome = Literal["promoted", "kept", "forced", "champion"]


@dataclass(frozen=True)
class Verdict:
    """How a challenger did against the champion on the same units of ground.

    Attributes:
        iou: by class that occurs in the truth, and under `mean_ice`: `champion`, `challenger`
            and `difference` (challenger less champion).
        interval: of the mean over the ice classes; None where there are too few units.
        against: what speaks against promotion, a sentence a condition; empty for a better model.
        absent: classes that do not occur in the test split, and are not judged.
    """

    iou: dict[str, dict[str, float]]
    interval: Interval | None
    against: list[str]
    absent: list[str]


def judge(
    champion: Matrices,
    challenger: Matrices,
    names: Sequence[str],
    params: PromotionParams,
    seed: int,
) -> Verdict:
    """Weigh two models.

    Args:
        champion, challenger: confusion matrices (units, classes, classes), the same units.
        names: class names by number, background first.
        params: margin, tolerance, and how to draw.
        seed: of the draws.

    Raises:
        InputError: the test split has no ice.
    """
    sums = champion.sum(axis=0), challenger.sum(axis=0)
    means = [float(mean_ice_iou(total)) for total in sums]
    if not np.isfinite(means).all():
        raise InputError(
            "the test split has no ice: nothing can be compared. Record other blocks for the test "
            "(conf/blocks.geojson), or check the labels."
        )
    pairs = list(zip(names, *(class_ious(total) for total in sums), strict=True))
    iou = {
        name: {"champion": float(old), "challenger": float(new), "difference": float(new - old)}
        for name, old, new in pairs
        if np.isfinite(old)
    }
    difference = means[1] - means[0]
    against = []
    if difference < params.margin:
        against.append(
            f"mean ice IoU is better by {difference:+.4f}, less than the margin {params.margin:g}"
        )
    units, needed = len(champion), units_needed(params.confidence)
    interval = None
    if units < needed:
        against.append(
            f"the test split has {units} pieces of ground, too few for an honest interval of "
            f"{params.confidence:.0%} (at least {needed})"
        )
    else:
        interval = paired_interval(
            champion, challenger, draws=params.draws, confidence=params.confidence, seed=seed
        )
        if interval.lower <= 0:
            against.append(
                f"the {params.confidence:.0%} interval of the difference, {interval.lower:+.4f} to "
                f"{interval.upper:+.4f}, does not lie above zero"
            )
    for name, values in iou.items():
        if -values["difference"] > params.tolerance:
            against.append(
                f"{name} is worse by {-values['difference']:.4f} IoU, more than the tolerance "
                f"{params.tolerance:g}"
            )
    iou[MEAN_ICE] = {"champion": means[0], "challenger": means[1], "difference": difference}
    return Verdict(iou, interval, against, [name for name, old, _ in pairs if np.isnan(old)])


@dataclass(frozen=True)
class Decision:
    """What became of a challenger, and why.

    Attributes:
        model: name in MLflow.
        outcome: `promoted`, `kept` (the champion stays), `forced` (champion against the
            verdict), or `champion` (there was nothing to compare, nothing changed).
        version: of the challenger.
        against: version that was champion before; empty where nothing was compared.
        champion: version that is champion now.
        reasons: what spoke against promotion, a sentence each.
        warnings: what whoever reads the numbers must know.
        verdict: the numbers; None where nothing was compared.
        units, unit_kind: how many pieces of ground were drawn, and what they are.
        params: margin, tolerance, draws and confidence that were asked for.
        test_hash: of the test split's slices and labels.
        forced: who forced it and why; empty where nobody did.
        date: UTC, ISO.
        run_url: the challenger's run, which holds the report.
    """

    model: str
    outcome: Outcome
    version: str
    against: str
    champion: str
    reasons: list[str]
    warnings: list[str]
    verdict: Verdict | None
    units: int
    unit_kind: str
    params: PromotionParams
    test_hash: str
    forced: str
    date: str
    run_url: str

    @property
    def summary(self) -> str:
        """The decision in a line."""
        if self.outcome == "champion":
            return f"{self.model} version {self.champion} is champion; {'; '.join(self.reasons)}"
        said = {
            "promoted": f"version {self.version} is champion now, instead of {self.against}",
            "kept": f"version {self.against} stays champion, against {self.version}",
            "forced": f"version {self.version} is champion now, instead of {self.against}, by force",
        }[self.outcome]
        reasons = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.model} {said}{reasons}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "params": self.params.model_dump()}

    def markdown(self) -> str:
        """The report, to be read by people."""
        lines = [f"# {self.model}: {self.outcome}", "", f"{self.summary}.", ""]
        if self.verdict is not None:
            lines += [
                f"| IoU | champion (version {self.against}) | challenger (version {self.version}) "
                "| difference |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| {name} | {v['champion']:.4f} | {v['challenger']:.4f} | {v['difference']:+.4f} |"
                for name, v in self.verdict.iou.items()
            ]
            lines += [
                "",
                f"Test split `{self.test_hash[:12]}`, every valid pixel once, in {self.units} "
                f"{self.unit_kind}. {_interval_in_words(self.verdict, self.params)}",
                "",
                f"Asked for: mean ice IoU better by {self.params.margin:g}, the lower end of the "
                f"interval above 0, no class worse by more than {self.params.tolerance:g}.",
            ]
        for title, sentences in (
            ("Against promotion", self.reasons),
            ("To be known", self.warnings),
            ("Forced", [self.forced] if self.forced else []),
        ):
            if sentences:
                lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
        return "\n".join([*lines, "", f"{self.date} · [run]({self.run_url})", ""])


def _interval_in_words(verdict: Verdict, params: PromotionParams) -> str:
    if verdict.interval is None:
        return "Too few for an interval."
    return (
        f"Difference of mean ice IoU {verdict.interval.difference:+.4f}, "
        f"{params.confidence:.0%} interval {verdict.interval.lower:+.4f} to "
        f"{verdict.interval.upper:+.4f} (paired bootstrap, {params.draws} draws)."
    )


def write_report(folder: Path, decision: Decision) -> None:
    """Write `decision.json`, `decision.md` and, where models were compared, `decision.png`."""
    write_json(folder / "decision.json", decision.to_json())
    with whole_file(folder / "decision.md") as beside:
        beside.write_text(decision.markdown(), encoding="utf-8")
    if decision.verdict is not None:
        save(_figure(decision, decision.verdict), folder / "decision.png")


def _figure(decision: Decision, verdict: Verdict) -> Figure:
    """Differences of IoU, challenger less champion, beside the limits that were asked for."""
    names = list(verdict.iou)
    values = [verdict.iou[name]["difference"] for name in names]
    colours = [*COLOURS[: len(names) - 1], "#444444"]
    figure, axes = plt.subplots(figsize=(7, 0.7 * len(names) + 1.8), layout="constrained")
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, 0.6, color=colours, edgecolor="#666666", linewidth=0.5)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:+.4f}", (max(value, 0), place), (4, 9),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    if verdict.interval is not None:
        low, high = verdict.interval.lower, verdict.interval.upper
        middle = verdict.interval.difference
        # The interval of a skewed statistic need not hold its middle.
        reach = [[max(middle - low, 0)], [max(high - middle, 0)]]
        axes.errorbar([middle], [places[-1]], xerr=reach, color="black", capsize=5,
                      label=f"{decision.params.confidence:.0%} interval")  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(decision.params.margin, color="#2a7f3f", linestyle="--", label="margin")
    axes.axvline(-decision.params.tolerance, color="#b03030", linestyle=":", label="tolerance")
    axes.set_yticks(places, names)
    axes.set(
        xlabel="IoU, challenger less champion",
        title=f"version {decision.version} against {decision.against}: {decision.outcome} "
        f"({decision.units} {decision.unit_kind})",
    )
    axes.legend(fontsize=8, loc="best")
    return figure
