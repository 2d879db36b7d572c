"""The minimum of a linear layer's penalised loss, for one L2 strength after the other, by L-BFGS that keeps what it
learned of the curvature from strength to strength and leaves classes alone that are done.

torch.optim.LBFGS with a strong Wolfe search takes 15 times as long to the same objective (20,000 x 768, 527 classes):
it treats all classes as one problem, and computes the logits anew for every length of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ITERATIONS, HISTORY, HALVINGS = 200, 20, 20  # of L-BFGS, a strength
TOLERANCE = 1e-5  # share of the loss that the next step would win at which a class is done
FLOOR = 0.01  # of the loss of the shares alone: the loss counts as this much more, or one near 0 would never be done
ROUNDING = 1e-6  # of a loss in float32
STIFF = 1e4  # curvature beside the diagonal's over which a step is rounding or from where the loss was another
COMPACT = 0.1  # share of the classes still minimised that must be done before their columns are cut out

Step = tuple[Tensor, Tensor, Tensor]  # of the weights [r, C], of the gradient [r, C], 1 / their product [C] or []


class OneLabel:
    """Cross-entropy, one class a clip: all classes are one problem."""

    def __init__(self, targets: Tensor) -> None:
        self.label = targets.int().argmax(dim=1)

    def loss(self, logits: Tensor) -> Tensor:
        """Mean over clips []."""
        return F.cross_entropy(logits, self.label)

    def residual(self, logits: Tensor) -> Tensor:
        """Derivative of a clip's loss by its logits [n, C]."""
        share = torch.softmax(logits, dim=1)
        share[torch.arange(len(share), device=share.device), self.label] -= 1
        return share

    def prior(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """(biases [C] that give every clip the classes' shares [C], their loss [])."""
        return torch.log(share), -(share * torch.log(share)).sum()

    def probability(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum()

    def only(self, kept: Tensor) -> OneLabel:
        raise AssertionError("classes that share a loss are done together")


class ManyLabels:
    """Binary cross-entropy: the classes are so many problems, each with its own curvature, step and end."""

    def __init__(self, targets: Tensor) -> None:
        self.sign = 1 - 2 * targets.float()

    def loss(self, logits: Tensor) -> Tensor:
        """Mean over clips of each class [C]. A sum of what is positive: it keeps its digits near 0."""
        return F.softplus(logits * self.sign).mean(dim=0)

    def residual(self, logits: Tensor) -> Tensor:
        """Derivative of a clip's loss by its logits [n, C]."""
        return torch.sigmoid(logits * self.sign).mul_(self.sign)

    def prior(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """(biases [C] that give every clip the classes' shares [C], their losses [C])."""
        return torch.logit(share), -(share * torch.log(share) + (1 - share) * torch.log1p(-share))

    def probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=0)

    def only(self, kept: Tensor) -> ManyLabels:
        """The problems of the classes with these numbers."""
        part = ManyLabels.__new__(ManyLabels)
        part.sign = self.sign[:, kept]
        return part


Targets = OneLabel | ManyLabels


@dataclass(frozen=True)
class Point:
    """Weights and what is known there. Classes are the last axis of all."""

    weight: Tensor  # [r, C]
    logits: Tensor  # [n, C]
    gradient: Tensor  # [r, C] gradient of the loss, without the penalty's
    loss: Tensor  # [C] or []
    steps: list[Step]  # the last is the newest

    def only(self, kept: Tensor) -> Point:
        """The classes with these numbers."""
        steps = [(step[:, kept], change[:, kept], inverse[kept]) for step, change, inverse in self.steps]
        return Point(self.weight[:, kept], self.logits[:, kept], self.gradient[:, kept], self.loss[kept], steps)

    def put(self, part: Point, kept: Tensor) -> Point:
        """`part` in place of the classes with these numbers; overwrites its own tensors."""
        if part.weight.shape == self.weight.shape:
            return part
        none = [self._no_step() for _ in range(len(part.steps) - len(self.steps))]
        whole = replace(self, steps=[*none, *self.steps])
        for old, new in zip(whole._tensors(), part._tensors(), strict=True):
            old[..., kept] = new
        return whole

    def _no_step(self) -> Step:
        return torch.zeros_like(self.weight), torch.zeros_like(self.weight), torch.zeros_like(self.loss)

    def _tensors(self) -> list[Tensor]:
        return [self.weight, self.logits, self.gradient, self.loss, *(tensor for step in self.steps for tensor in step)]


class Minimiser:
    """Weights [r, C] that minimise mean over clips of the loss + strength / 2 * |all rows of weights but the last|^2.

    Args:
        x: [n, r] features in their principal directions, the last one 1 for the bias.
        variance: [r] mean squares of x.
        targets: [n, C] bool.
    """

    def __init__(self, x: Tensor, variance: Tensor, targets: Tensor, multi_label: bool) -> None:
        self.x, self.variance = x, variance
        self.labels: Targets = ManyLabels(targets) if multi_label else OneLabel(targets)
        n = len(x)
        bias, self.prior = self.labels.prior(targets.float().mean(dim=0).clamp(0.5 / n, 1 - 0.5 / n))
        weight = torch.zeros(x.shape[1], targets.shape[1], device=x.device)
        weight[-1] = bias
        logits = x @ weight
        self.point = Point(weight, logits, self._gradient(self.labels, logits), self.labels.loss(logits), [])
        self.penalty = torch.zeros(x.shape[1], 1, device=x.device)

    def _gradient(self, labels: Targets, logits: Tensor) -> Tensor:
        return (self.x.T @ labels.residual(logits)).div_(len(self.x))

    def minimise(self, strength: float) -> Tensor:
        """The weights [r, C] under another L2 strength, from those of the last one.

        In principal directions the Hessian is close to diagonal: mean of p_c (1 - p_c) * variance_j + strength. Its
        inverse is what L-BFGS starts from. The penalty's part of the curvature is known, so that the steps under
        another strength tell of this one too. A product with x is what takes time: an iteration has two, as logits
        are linear in the weights and a step of any length costs none.
        """
        penalty = torch.full_like(self.penalty, strength)
        penalty[-1] = 0
        probability = self.labels.probability(self.point.logits)
        curvature = (probability * (1 - probability)).mean(dim=0).clamp_min(1e-10)
        del probability
        inverse = 1 / (torch.outer(self.variance, curvature) + penalty)
        penalty_change, self.penalty = penalty - self.penalty, penalty
        point = replace(
            self.point,
            steps=[
                pair(step, change + penalty_change * step, inverse, self.labels) for step, change, _ in self.point.steps
            ],
        )
        labels, prior = self.labels, self.prior
        whole, rows = point, torch.arange(self.point.weight.shape[1], device=self.x.device)
        improves = torch.ones_like(point.loss, dtype=torch.bool)
        for _ in range(MAX_ITERATIONS):
            value = point.loss + 0.5 * labels.dot(penalty * point.weight, point.weight)
            direction = descent(point.gradient + penalty * point.weight, point.steps, inverse, labels)
            slope = labels.dot(direction, point.gradient + penalty * point.weight)
            left = improves & (-slope >= TOLERANCE * (value + FLOOR * prior))
            if not left.any():
                break
            if left.ndim and left.float().mean() <= 1 - COMPACT:
                whole, kept = whole.put(point, rows), left.nonzero()[:, 0]
                point, labels, rows = point.only(kept), labels.only(kept), rows[kept]
                direction, inverse = direction[:, kept], inverse[:, kept]
                slope, value, prior = slope[kept], value[kept], prior[kept]
            logit_change = self.x @ direction
            length, loss = search(point, labels, penalty, direction, logit_change, slope, value, prior)
            improves, logits = length > 0, torch.addcmul(point.logits, logit_change, length)
            gradient, step = self._gradient(labels, logits), length * direction
            steps = [*point.steps, pair(step, gradient - point.gradient + penalty * step, inverse, labels)][-HISTORY:]
            point = Point(point.weight + step, logits, gradient, loss, steps)
        self.point = whole.put(point, rows)
        return self.point.weight.clone()


def search(
    point: Point,
    labels: Targets,
    penalty: Tensor,
    direction: Tensor,
    logit_change: Tensor,
    slope: Tensor,
    value: Tensor,
    prior: Tensor,
) -> tuple[Tensor, Tensor]:
    """(length of the step of each problem, loss there): 1, or halved until the objective falls, or 0 if it does not.

    Args:
        logit_change: [n, C] change of the logits by a step of length 1.
        slope: derivative of the objective by the length.
        value: the objective where the step starts.
        prior: loss of the shares alone.
    """
    linear, quadratic = labels.dot(penalty * point.weight, direction), labels.dot(penalty * direction, direction)
    length = torch.ones_like(slope)
    for halvings in range(HALVINGS + 1):
        loss = labels.loss(torch.addcmul(point.logits, logit_change, length))
        after = loss + value - point.loss + length * (linear + 0.5 * length * quadratic)
        too_long = after > value + 1e-4 * length * slope + ROUNDING * (value + FLOOR * prior)
        if not too_long.any() or halvings == HALVINGS:
            break
        length = torch.where(too_long, length / 2, length)
    is_rounding = after >= value  # all that is left is rounding
    return torch.where(is_rounding, 0, length), torch.where(is_rounding, point.loss, loss)


def pair(step: Tensor, change: Tensor, inverse: Tensor, labels: Targets) -> Step:
    """A step and what it changed in the gradient; 1 / their product is 0, and it counts for nothing, where it is
    rounding beside the diagonal's `inverse`."""
    product = labels.dot(step, change)
    informative = product * STIFF > labels.dot(change, inverse * change)
    return step, change, torch.where(informative, 1 / torch.where(informative, product, 1), 0)


def descent(objective_gradient: Tensor, steps: list[Step], inverse: Tensor, labels: Targets) -> Tensor:
    """The two-loop recursion of L-BFGS (Nocedal & Wright, algorithm 7.4) from a diagonal `inverse` of the Hessian,
    scaled to the curvature of the newest step (equation 7.20)."""
    direction, shares = -objective_gradient, []
    for step, change, rho in reversed(steps):
        shares.append(rho * labels.dot(step, direction))
        direction = direction - shares[-1] * change
    direction = direction * inverse
    if steps:
        _, change, rho = steps[-1]
        scale = rho * labels.dot(change, inverse * change)  # over the diagonal's
        direction = direction / torch.where(scale > 0, scale, 1)
    for (step, change, rho), share in zip(steps, reversed(shares), strict=True):
        direction = direction + step * (share - rho * labels.dot(change, direction))
    return direction
