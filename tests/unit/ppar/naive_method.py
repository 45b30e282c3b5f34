"""The whole method as float64 loops over images, cells and classes, written from its formulas.

Slow and plain on purpose: the reference that `ppar_dist.ppar.objective` is tested against.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from ppar_dist.config.method_section import PparConfig

Vector = np.ndarray


@dataclass
class Image:
    """One image: features (D, h, w), labels (H, W), domain number, segmentation loss."""

    dense: Vector
    labels: Vector
    domain: int
    loss: float


@dataclass
class Sample:
    """What the method says about one image."""

    total: float
    weight: float
    reliability: float | None
    losses: dict[str, float]


@dataclass
class NaiveMethod:
    """State and step of the method for M domains and K classes."""

    config: PparConfig
    text: Vector  # (K, D) unit rows
    stride: int
    sums: dict[tuple[int, int], Vector] = field(default_factory=dict)
    counts: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    cells: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    histogram: Vector | None = None
    r_sums: Vector = field(default_factory=lambda: np.zeros(3))
    u_sums: Vector = field(default_factory=lambda: np.zeros(2))
    trust: dict[tuple[int, int], float] = field(default_factory=dict)  # by domain and class; 1 where absent
    likelihood: Vector | None = None  # (M, K, K): of a domain's label in a class; None: a label is its class

    def prototypes(self) -> Vector:
        """v_k = norm((1 - α_k) t_k + α_k norm(trusted mean of the domains' unit centroids))."""
        vtp, rows = self.config.vtp, []
        for k, t in enumerate(self.text):
            centroids = [
                max(1e-3, self.trusted(m, c)) * norm(s / self.counts[m, c])
                for (m, c), s in self.sums.items()
                if c == k
            ]
            if not vtp.enabled or not centroids:
                rows.append(t)
                continue
            seen = sum(n for (_, c), n in self.cells.items() if c == k)
            alpha = vtp.alpha_max * (1 - math.exp(-seen / vtp.count_0))
            rows.append(norm((1 - alpha) * t + alpha * norm(sum(centroids))))
        return np.array(rows)

    def threshold(self, q: float) -> float:
        """The q-th quantile of the moving histogram; nothing is admitted while it is empty."""
        if self.histogram is None:
            return -1.0
        target, below, bins = q * self.histogram.sum(), 0.0, len(self.histogram)
        for number, count in enumerate(self.histogram):
            if count and below + count >= target:
                return (number + (target - below) / count) / bins
            below += count
        return 1.0

    def trusted(self, domain: int, k: int) -> float:
        """The weight of the domain's centroid of class ``k``."""
        return self.trust.get((domain, k), 1.0)

    def step(self, images: list[Image], progress: float) -> list[Sample]:
        """Losses and weights of a global batch from the state so far, which then takes it in."""
        align, weighing = self.config.alignment, self.config.reweighting
        stage = sum(progress >= b for b in align.boundaries)
        v, start = self.prototypes(), align.boundaries[2]
        q = align.admit_from + (1 - align.admit_from) * max(0.0, progress - start) / (1 - start)
        limit = self.threshold(q)
        mean, spread, mean_weight = self._moments()
        samples, rs, us, difficulties, found = [], [], [], [], []
        for image in images:
            units, label = self._cells(image)
            cells = list(zip(units, label, strict=True))
            found += [(image.domain, k, u) for u, k in zip(units, label, strict=True) if k != 255]
            classes = sorted(set(label) - {255})
            pooled = {k: norm(sum(u for u, c in cells if c == k)) for k in classes}
            text = average([self._surprise(pooled[k], self.text, k) for k in classes])
            visual = average([self._surprise(pooled[k], v, k) for k in classes])
            pixels = [self._read(u, v, k, image.domain) for u, k in cells if k != 255]
            difficulties += [1 - math.exp(-x) for x in pixels]
            pixel = average([x for x in pixels if 1 - math.exp(-x) <= limit])
            losses = {}
            if align.enabled:
                losses = {"text": text} if stage >= 1 else {}
                losses |= {"visual_text": visual} if stage >= 2 else {}
                losses |= {"pixel": pixel} if stage >= 3 else {}
            weight = 1.0
            if classes:
                rs.append(-visual)
            if classes and spread is not None:
                score = weighing.beta * (-visual - mean) / max(spread, weighing.min_spread)
                us.append(min(weighing.max, max(weighing.min, math.exp(score))))
                if weighing.enabled and stage >= weighing.start_stage and mean_weight is not None:
                    weight = us[-1] / mean_weight
            scale = {
                "text": align.text_weight,
                "visual_text": align.visual_weight,
                "pixel": align.pixel_weight,
            }
            total = weight * (image.loss + sum(scale[name] * loss for name, loss in losses.items()))
            samples.append(Sample(total, weight, -visual if classes else None, losses))
        self._fold_bank(found)
        self._fold_moments(rs, us)
        if stage >= 2 and align.enabled and difficulties:
            self._fold_histogram(difficulties)
        return samples

    def _moments(self) -> tuple[float, float | None, float | None]:
        r, square, n = self.r_sums
        if n == 0:
            return 0.0, None, None
        spread = math.sqrt(max(0.0, square / n - (r / n) ** 2))
        return r / n, spread, self.u_sums[0] / self.u_sums[1] if self.u_sums[1] else None

    def _cells(self, image: Image) -> tuple[list[Vector], list[int]]:
        s, units, label = self.stride, [], []
        for i in range(image.dense.shape[1]):
            for j in range(image.dense.shape[2]):
                block = image.labels[i * s : (i + 1) * s, j * s : (j + 1) * s]
                shares = [(block == k).sum() / s**2 for k in range(len(self.text))]
                best = int(np.argmax(shares))
                label.append(best if shares[best] >= self.config.min_purity else 255)
                units.append(norm(image.dense[:, i, j]))
        return units, label

    def _surprise(self, feature: Vector, prototypes: Vector, k: int) -> float:
        """-log p(k | feature): cross-entropy of cosines over τ."""
        logits = [float(feature @ p) / self.config.alignment.temperature for p in prototypes]
        return math.log(sum(math.exp(x) for x in logits)) - logits[k]

    def _read(self, feature: Vector, prototypes: Vector, k: int, domain: int) -> float:
        """-log p(label k | feature), where the label may stand for other classes."""
        if self.likelihood is None:
            return self._surprise(feature, prototypes, k)
        row = enumerate(self.likelihood[domain, k])
        return -math.log(sum(a * math.exp(-self._surprise(feature, prototypes, j)) for j, a in row))

    def _fold_bank(self, found: list[tuple[int, int, Vector]]) -> None:
        momentum = self.config.bank.momentum
        for key in {(m, k) for m, k, _ in found}:
            units = [u for m, k, u in found if (m, k) == key]
            old = self.sums.get(key, np.zeros_like(units[0]))
            self.sums[key] = momentum * old + (1 - momentum) * sum(units)
            self.counts[key] = momentum * self.counts[key] + (1 - momentum) * len(units)
            self.cells[key] += len(units)

    def _fold_moments(self, rs: list[float], us: list[float]) -> None:
        momentum = self.config.reweighting.momentum
        if rs:
            new = np.array([sum(rs), sum(r * r for r in rs), len(rs)])
            self.r_sums = momentum * self.r_sums + (1 - momentum) * new
        if us:
            self.u_sums = momentum * self.u_sums + (1 - momentum) * np.array([sum(us), len(us)])

    def _fold_histogram(self, difficulties: list[float]) -> None:
        bins = self.config.alignment.difficulty_bins
        new = np.zeros(bins)
        for value in difficulties:
            new[min(bins - 1, int(value * bins))] += 1
        self.histogram = 0.1 * new + 0.9 * (np.zeros(bins) if self.histogram is None else self.histogram)


def norm(x: Vector) -> Vector:
    """x / ‖x‖."""
    return x / math.sqrt(float(x @ x))


def average(values: list[float]) -> float:
    """Mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
