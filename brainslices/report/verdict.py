"""Verdict on a model: its scores compared with floors and baselines, by stated thresholds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brainslices.report.collect import Reconstruction, RunRecord, Sampling

__all__ = ["Check", "Sentence", "judge"]

# Share of the distance from the mean training image's score to 1 that a reconstruction must reach,
# and share of the codebook that must be used.
MIN_GAP, MIN_USAGE = 0.75, 0.5
# Highest cost of a code under the prior, relative to that by position alone; and highest cost of a
# validation code, relative to a training code, of a prior that is not overfit.
MAX_COST, MAX_OVERFIT = 0.95, 1.1
# SSIM to the nearest training slice above that of test slices; difference of the MS-SSIM to that of
# real slices; Frechet distance in multiples of that of training slices.
MAX_EXCESS, MAX_DIFFERENCE, MAX_FRECHET = 0.02, 0.05, 3.0
NO_SAMPLES = "No samples were given. Run sample.py --evaluate and pass its folder as --samples."


@dataclass(frozen=True)
class Check:
    """A number, what it is compared with, and whether it passes.

    Attributes:
        name: what is measured.
        value: the number as text.
        baseline: the floor or baseline as text, with its name.
        threshold: when the check passes, in words.
        is_good: whether it passes.
        meaning: how to read the number.
    """

    name: str
    value: str
    baseline: str
    threshold: str
    is_good: bool
    meaning: str


@dataclass(frozen=True)
class Sentence:
    """One sentence of the verdict: `parts` are texts and the checks between them."""

    title: str
    parts: Sequence[str | Check]

    @property
    def checks(self) -> list[Check]:
        """The checks in the sentence."""
        return [part for part in self.parts if isinstance(part, Check)]

    @property
    def is_good(self) -> bool | None:
        """Whether all checks pass; None without any."""
        return all(check.is_good for check in self.checks) if self.checks else None


def judge(
    runs: Sequence[RunRecord],
    reconstructions: Sequence[Reconstruction],
    samplings: Sequence[Sampling],
) -> list[Sentence]:
    """Judge each reconstruction, each prior with metrics, and each sampling in a sentence.

    Args:
        runs: the runs.
        reconstructions: of the VQ-VAEs; one sentence says if there is none.
        samplings: of the priors; one sentence says if there is none.
    """
    priors = [run for run in runs if run.kind == "pixelcnn"]
    return [
        *_sentences("Reconstruction", reconstructions, _reconstruction_parts, _unscored(runs)),
        *_sentences("Prior", list(filter(_is_measured, priors)), _prior_parts, _half(priors)),
        *_sentences("Samples", samplings, _sampling_parts, NO_SAMPLES),
    ]


def _sentences(title, items, parts, missing):
    """Return a sentence for each item, which names it if there are several."""
    if not items:
        return [Sentence(title, [missing])]
    names = [f"{title} of {item.name}" for item in items] if len(items) > 1 else [title]
    return [Sentence(name, parts(item)) for name, item in zip(names, items, strict=True)]


def _unscored(runs):
    stage_one = [run for run in runs if run.kind == "vqvae" and run.score_so_far]
    scores = "; ".join(f"{run.name}: {run.score_so_far}{_floor(run.metrics)}" for run in stage_one)
    text = f"{scores}. " if scores else "Not measured. "
    return text + "Run reconstruct.py and pass its folder as --reconstruction."


def _floor(metrics):
    floor = metrics.get("floor_mean_image", {}).get("ssim_foreground")
    return f" (mean training image {floor:.3f})" if floor is not None else ", without floors"


def _reconstruction_parts(reconstruction):
    metrics = reconstruction.metrics
    score, floor = metrics["ssim_foreground"], metrics["floor_mean_image"]["ssim_foreground"]
    needed = floor + MIN_GAP * (1 - floor)
    similarity = Check(
        "ssim_foreground",
        f"{score:.3f}",
        f"mean training image {floor:.3f}",
        f"at least {needed:.3f}: {MIN_GAP:.0%} of the way from the mean training image to 1",
        score >= needed,
        "Structural similarity of original and reconstruction over the pixels of the head, 1 is a "
        f"perfect copy. 95 % interval by subject: {metrics['ssim_foreground_low']:.3f} to "
        f"{metrics['ssim_foreground_high']:.3f}. The mean training image is what a model scores "
        "that has learned nothing about the individual brain.",
    )
    usage = Check(
        "codebook usage",
        f"{metrics['codebook_usage']:.0%}",
        f"{metrics['num_embeddings']} codes",
        f"at least {MIN_USAGE:.0%}",
        metrics["codebook_usage"] >= MIN_USAGE,
        "Share of the codebook that these slices use. A low share is a collapsed codebook.",
    )
    where = f"{metrics.get('split') or 'given'} slices of {metrics['subjects']} subjects"
    parts = [f"{metrics['slices']} {where} are reconstructed with an ssim_foreground of "]
    parts += [similarity, f", where the mean training image scores {floor:.3f}"]
    for name, codec in reconstruction.codecs.items():
        parts += [f", {name} at the same rate "]
        parts.append(_codec_check(name, score, codec["ssim_foreground"]))
    return [*parts, "; they use ", usage, f" of the {metrics['num_embeddings']} codes."]


def _codec_check(name, score, codec):
    return Check(
        f"ssim_foreground of {name}",
        f"{codec:.3f}",
        f"this model {score:.3f}",
        "below this model",
        codec < score,
        f"The same slices coded by {name} with as many bits per pixel as the codes take.",
    )


def _is_measured(prior):
    splits = prior.metrics.get("splits", {})
    return {"train", "validate"} <= {*splits} and "nats_per_code_by_position" in splits["validate"]


def _half(priors):
    half = [f"{run.name}: {run.status} ({run.score_so_far or 'no score'})." for run in priors]
    return " ".join(half) or "No prior was given. Run train_pixelcnn.py and pass it in --runs."


def _prior_parts(prior):
    metrics = prior.metrics
    bits = {name: split["nats_per_code"] / math.log(2) for name, split in metrics["splits"].items()}
    name = "test" if "test" in bits else "validate"
    by_position = metrics["splits"][name]["nats_per_code_by_position"] / math.log(2)
    gain = 1 - bits[name] / by_position
    cost = Check(
        f"bits per code, {name}",
        f"{bits[name]:.2f}",
        f"by position alone {by_position:.2f}",
        f"at most {MAX_COST * by_position:.2f}: {1 - MAX_COST:.0%} below the cost by position",
        bits[name] <= MAX_COST * by_position,
        "Bits that the prior needs for a code of a slice it has not seen. By position "
        "alone it costs what the frequencies of the codes there in training slices give: a prior "
        "above that has learned nothing from the context.",
    )
    overfit = bits["validate"] / bits["train"] - 1
    gap = Check(
        "validation above training",
        f"{overfit:+.1%}",
        f"training {bits['train']:.2f} bits",
        f"at most {MAX_OVERFIT - 1:+.0%}",
        overfit <= MAX_OVERFIT - 1,
        "How much more validation codes cost than training codes. A large gap is overfitting.",
    )
    side = "below" if gain >= 0 else "above"
    return [
        f"A code of a {name} slice costs ",
        cost,
        f" bits, {abs(gain):.0%} {side} the {by_position:.2f} of code counts at its position; "
        "validation costs ",
        gap,
        " against training.",
    ]


def _sampling_parts(sampling):
    metrics = sampling.metrics
    if not sampling.is_evaluated:
        count = metrics["samples"]
        return [f"{count} samples, not compared with real slices: run sample.py --evaluate."]
    nearest, real_nearest = metrics["nearest_train_ssim"], metrics["nearest_train_ssim_real"]
    pairwise, real_pairwise = metrics["pairwise_ms_ssim"], metrics["pairwise_ms_ssim_real"]
    frechet, real_frechet = metrics["frechet_distance"], metrics["frechet_distance_real"]
    memorised = Check(
        "SSIM to the nearest training slice",
        f"{nearest:.3f}",
        f"real test slices {real_nearest:.3f}",
        f"at most {real_nearest + MAX_EXCESS:.3f}: {MAX_EXCESS} above real test slices",
        nearest <= real_nearest + MAX_EXCESS,
        "Memorisation: a copied training slice scores like a reconstruction. Samples should be no "
        "nearer to training slices than real unseen slices are.",
    )
    diverse = Check(
        "MS-SSIM between samples",
        f"{pairwise:.3f}",
        f"real slices {real_pairwise:.3f}",
        f"within {MAX_DIFFERENCE} of real slices",
        abs(pairwise - real_pairwise) <= MAX_DIFFERENCE,
        "Diversity at one slice position. Above real slices the prior repeats itself; below, its "
        "samples are less alike than brains are.",
    )
    distance = Check(
        "Fréchet distance to test slices",
        f"{frechet:.4f}",
        f"real training slices {real_frechet:.4f}",
        f"at most {MAX_FRECHET * real_frechet:.4f}: {MAX_FRECHET:g} times real training slices",
        frechet <= MAX_FRECHET * real_frechet,
        "Distance between the distributions of samples and test slices in a fixed feature space.",
    )
    return [
        f"{metrics['samples']} samples at temperature {metrics['temperature']:g} have an SSIM of ",
        memorised,
        f" to their nearest training slice (real test slices {real_nearest:.3f}), an MS-SSIM of ",
        diverse,
        f" to each other (real {real_pairwise:.3f}) and a Fréchet distance of ",
        distance,
        f" to test slices (real training slices {real_frechet:.4f}).",
    ]
