r"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models.

Ben Zaken, Ravfogel, Goldberg; ACL 2022; arXiv 2106.10199.

    y = W x + (b_0 + c d)                         every affine map, W in R^{d_out x d_in} frozen, d in R^{d_out}
    y = g * (x - mean) / std + (b_0 + c d)        every layer norm, gain g frozen

Trained: every bias vector that the encoder already has, and the whole task head, which is new. Nothing is added: a
model without biases (LLaMA) offers nothing to train. The paper's smaller variant trains the query biases and those of
the feed-forward layer's first matrix alone: ``targets=("q", "up")``.
Start: d = 0, the pretrained biases. The change is kept beside the pretrained vector, which is never written; decaying
it pulls a bias back to its pretrained value instead of to zero.

The biases of the keys are trained, as in the paper, and cannot learn: q^T (k + b) adds the same number to the score of
every key, which softmax ignores. The paper observes that they stay put.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from reference_impls.adapter import Adapter, AdapterError, FreeDelta

HEADS = ("head", "lm_head")
"""Task heads: trained whole or not at all."""


class BitFit(Adapter):
    """A learned change of every bias vector."""

    mergeable = True
    # Softmax is invariant to what a key's bias adds; see the module's docstring.
    inert = (".k.parametrizations.bias.0.d",)

    def amount_of_change(self) -> dict[str, float]:
        """The paper's measure for every bias vector: ||b - b_0||_1 / dim(b)."""
        return {
            path: float(site.d.detach().abs().mean())
            for path, site in self.sites().items()
            if isinstance(site, FreeDelta) and path.split(".")[0] not in HEADS
        }


def attach(
    model: nn.Module,
    *,
    targets: Sequence[str] | None = None,
    train_head: bool = True,
) -> Adapter:
    """Train every bias outside the heads, or those of modules whose name is in ``targets``; and the task head."""
    names = bias_names(model, targets)
    adapter = BitFit(model)
    for name in names:
        adapter.reparameterize(name, FreeDelta(model.get_parameter(name)))
    if train_head:
        adapter.unfreeze("head")
    return adapter


def bias_names(model: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the bias vectors to train; the name must end in ``.bias``, since tables may be called biases too."""
    biases = [n for n, _ in model.named_parameters() if n.endswith(".bias") and n.split(".")[0] not in HEADS]
    if not biases:
        raise AdapterError(f"{type(model).__name__} has no bias vectors outside its head, and BitFit adds none")
    known = sorted({name.split(".")[-2] for name in biases})
    unknown = sorted(set(targets or ()) - set(known))
    if unknown or targets == ():
        wrong = ", ".join(unknown) or "nothing"
        raise AdapterError(f"targets: no bias belongs to {wrong}; modules with a bias: {', '.join(known)}")
    return [name for name in biases if targets is None or name.split(".")[-2] in targets]
