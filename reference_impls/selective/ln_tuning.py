r"""Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning.

Zhao, Tu, Wei, Mei, Xie; ICLR 2024; arXiv 2312.11420.

    LayerNorm:  y = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta        gamma, beta in R^d
    RMSNorm:    y = gamma * x / sqrt(mean(x^2) + eps)                        gamma in R^d
    with gamma = gamma_0 + c d_gamma,  beta = beta_0 + c d_beta

Trained: gain, and bias where there is one, of the two norms of every block, in front of attention and of the
feed-forward network. That is the paper's "LayerNorm-simple". Its default variant also trains the connector between
vision and language, the word embeddings and the output head: ``also=("embed", "head")``, and the connector's name.
Start: the pretrained norms.

In a pre-norm model a change of the gain by the factor u is the same as W diag(u) for every matrix that reads the norm's
output, so the method rescales channels and cannot rotate them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from reference_impls.adapter import Adapter, AdapterError, FreeDelta


class LNTuning(Adapter):
    """A learned change of the norms of every block."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    final_norm: bool = False,
    also: Sequence[str] = (),
) -> Adapter:
    """Train the norms of all blocks; the norm outside them too (PEFT's choice) and whole modules ``also`` if asked.

    Norms should be in float32: half precision loses small changes of gains near 1.
    """
    names = norm_tensors(model, final_norm)
    unknown = sorted(set(also) - {path for path, _ in model.named_modules()})
    if unknown:
        own = ", ".join(name for name, _ in model.named_children())
        raise AdapterError(f"also: {type(model).__name__} has no module {', '.join(unknown)}; it has: {own}")
    adapter = LNTuning(model)
    for name in names:
        adapter.reparameterize(name, FreeDelta(model.get_parameter(name)))
    for path in also:
        adapter.unfreeze(path)
    return adapter


def norm_tensors(model: nn.Module, outside: bool) -> list[str]:
    """Names of gains and biases of the norms, inside the blocks alone or ``outside`` of them too."""
    found = [
        f"{path}.{name}"
        for path, norm in model.named_modules()
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and (outside or "blocks" in path.split("."))
        for name, _ in norm.named_parameters()
    ]
    if not found:
        raise AdapterError(f"{type(model).__name__} has no LayerNorm or RMSNorm with a gain to train")
    return found
