r"""Confidence after temperature (SDAR, arXiv 2510.06303; Dream, arXiv 2508.15487): by what tokens are drawn from.

LLaDA ranks positions by softmax(logits), whatever the temperature and the filters that tokens are drawn with. SDAR and
Dream rank them by the distribution q that tokens are drawn from:

    c_j(v) = q_j(v),    q_j = softmax(logits_j / temperature) after top-k and top-p

Everything else, the exact log-probability too, is as in the sampler that ranks by softmax(logits), with c_j of q_j.
Greedy draws have no q to rank by: at temperature 0, q_j is that of temperature 1, as in Dream's release.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from dlmrl_kit.core.behaviour import Behaviour, behaviour_log_probs, by_rows
from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import View
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder


def tempered(view: View) -> View:
    """Returns the view whose logits are log q up to a constant: its confidences are those of q, its draws the same."""
    greedy = view.behaviour.temperature == 0
    drawn = replace(view.behaviour, temperature=1.0) if greedy else view.behaviour
    filters = drawn.filters(view.logits.shape[-1])
    if not filters and drawn.temperature == 1:
        return view
    if filters:
        logits = by_rows(lambda logits: behaviour_log_probs(logits, drawn), view.logits)
    else:
        logits = view.logits / drawn.temperature
    return replace(view, logits=logits, behaviour=Behaviour(0.0 if greedy else 1.0))


@register("sampler", paper="arXiv 2510.06303")
class TemperedLowConfidence(LowConfidence):
    """Low-confidence remasking by probabilities after temperature and filters (SDAR; Dream's ``maskgit_plus``).

    Arguments as ``MaskSampler``.
    """

    def ranked(self, view: View) -> View:
        """Returns the view whose confidences are those of the distribution that tokens are drawn from."""
        return tempered(view)


@register("sampler", paper="arXiv 2508.15487")
class TemperedEntropyOrder(EntropyOrder):
    """Commits where the distribution that tokens are drawn from has the lowest entropy (Dream's ``entropy``).

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each position by minus the entropy, in nats, after temperature and filters: [N]."""
        return super().scores(tempered(view))


@register("sampler", paper="arXiv 2508.15487")
class TemperedMarginOrder(MarginOrder):
    """Commits where the two best tokens are farthest apart after temperature and filters (Dream's ``topk_margin``).

    Arguments as ``MaskSampler``.
    """

    def scores(self, view: View) -> Tensor:
        """Scores each position by the probability of its best token minus that of the second best: [N]."""
        return super().scores(tempered(view))
