"""Linear maps with closed forms: what two views of one thing share, how tokens are told apart, where values stand.

Hidden states share a large common part that tells nothing. Maps of `shared_directions` and `token_code` take it to 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shared:
    """What two views of the same things have in common."""

    first: Tensor
    """[C, H]: directions of the first view; what they give has unit deviation."""
    second: Tensor
    """[C, H]: those of the second view, in the same order."""
    correlation: Tensor
    """[C]: how well they agree, 0 to 1."""


def shared_directions(x: Tensor, y: Tensor, *, count: int, ridge: float = 1.0) -> Shared:
    """Canonical correlation analysis of x [N, H] and y [N, H], whose rows belong together.

    Args:
        x: the first view.
        y: the second view.
        count: how many directions.
        ridge: added to each covariance, in units of its mean variance.
    """
    x, y = _without_common_part(x), _without_common_part(y)
    white_x, white_y = _whitening(x, ridge), _whitening(y, ridge)
    u, _, v = torch.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    first, second = (white_x @ u[:, :count]).T, (white_y @ v[:count].T).T
    a, b = x @ first.T, y @ second.T
    deviation_a, deviation_b = a.std(0).clamp_min(1e-12), b.std(0).clamp_min(1e-12)
    correlation = (a * b).mean(0) / (deviation_a * deviation_b)
    return Shared(first / deviation_a[:, None], second / deviation_b[:, None], correlation.clamp(0, 1))


@dataclass(frozen=True, slots=True)
class Code:
    """A code of tokens by a few numbers."""

    encode: Tensor
    """[C, H]: from hidden states; what they give has unit deviation."""
    decode: Tensor
    """[C, D]: back to what stands for the token."""


def token_code(x: Tensor, targets: Tensor, *, count: int, ridge: float = 0.3) -> Code:
    """The `count` numbers of hidden states x [N, H] that tell most of targets [N, D], by reduced-rank regression."""
    x, targets = _without_common_part(x), targets - targets.mean(0)
    to_targets = torch.linalg.solve(_moments(x, ridge), x.T @ targets / len(x))
    _, _, directions = torch.linalg.svd(x @ to_targets, full_matrices=False)
    encode = (to_targets @ directions[:count].T).T
    codes = x @ encode.T
    deviation = codes.std(0).clamp_min(1e-12)
    return Code(encode / deviation[:, None], torch.linalg.lstsq(codes / deviation, targets).solution)


def separator(x: Tensor, on: Tensor, *, low: float, high: float, ridge: float = 0.1) -> tuple[Tensor, Tensor]:
    """Weights [H] and a bias: w·x + b is `high` in the mean of rows `on`, bool [N], and `low` in that of the others."""
    weights = regression(x, on.float(), ridge=ridge)
    scores = x @ weights
    weights = weights * ((high - low) / (scores[on].mean() - scores[~on].mean()).clamp_min(1e-12))
    return weights, low - (x[~on] @ weights).mean()


def constant(x: Tensor, value: float, *, ridge: float = 0.01) -> Tensor:
    """Weights [H] with which rows x [N, H] give about `value`, all of them: by what they have in common."""
    return torch.as_tensor(torch.linalg.solve(_moments(x, ridge), value * x.mean(0)))


def regression(x: Tensor, wanted: Tensor, *, ridge: float = 0.1) -> Tensor:
    """Weights [H] of ridge regression from centred rows x [N, H] to centred `wanted` [N]."""
    centred = x - x.mean(0)
    moments = centred.T @ (wanted - wanted.mean()) / len(x)
    return torch.as_tensor(torch.linalg.solve(_moments(centred, ridge), moments))


def _without_common_part(x: Tensor) -> Tensor:
    """Rows centred, and without their component along the mean: linear maps fitted to them give 0 for the mean."""
    common = torch.nn.functional.normalize(x.mean(0), dim=0)
    x = x - x.mean(0)
    return x - torch.outer(x @ common, common)


def _moments(x: Tensor, ridge: float) -> Tensor:
    moments = x.T @ x / len(x)
    return moments + ridge * moments.diagonal().mean() * torch.eye(x.shape[1], device=x.device)


def _whitening(x: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(_moments(x, ridge))
    return torch.as_tensor(vectors @ torch.diag(values.rsqrt()) @ vectors.T)
