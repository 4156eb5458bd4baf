r"""repeng: control vectors by Representation Engineering: A Top-Down Approach to AI Transparency.

Zou, Phan, Chen, Campbell, Guo, Ren, Pan, Yin, Mazeika and 12 others; arXiv 2310.01405. The control vectors are those of
Theia Vogel's library: vgel/repeng.

From N pairs of texts that differ in one trait, with h_i^+ and h_i^- in R^d the output of a block at their last tokens,
and their differences D_i = h_i^+ - h_i^-, a direction v in R^d a block is computed, by one of four methods:

    pca_diff       first principal component of the rows D_i: where the differences vary most (repeng's default)
    pca_center     first principal component of the 2N rows h_i^+ - c_i and h_i^- - c_i,   c_i = (h_i^+ + h_i^-) / 2
    pca_shuffled   first principal component of the rows s_i D_i, with signs s_i = +-1 drawn at random (RepE's pipeline)
    cluster_mean   mean of the h_i^+ minus mean of the h_i^-, at its own length (RepE)

A component has length 1 and no sign of its own: v is turned to where h_i^+ lies further than h_i^- in more pairs.
PCA subtracts the mean of its rows. In pca_diff that takes away the very shift that all pairs have in common; in the
next two that shift stands in the rows with both signs, or with either at random, and is kept as variance.

Control, in chosen blocks and at every token that is no padding, with a coefficient c, also negative:

    out <- out + c v,      with normalize = True:   out <- (out + c v) ||out|| / ||out + c v||

Trained by gradient: nothing. ``fit`` runs the pairs through the model without control and computes v. Start: v = 0, the
base model. Vectors of several traits add, subtract and scale (:class:`ControlVector`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Wrapper
from reference_impls.backbones.base import Batch
from reference_impls.backbones.decoder import Decoder

Method = Literal["pca_diff", "pca_center", "pca_shuffled", "cluster_mean"]


@dataclass(frozen=True)
class Contrast:
    """N pairs of texts: row i of ``positive`` has the trait that row i of ``negative`` has not."""

    positive: Batch
    negative: Batch

    def __post_init__(self) -> None:
        if len(self.positive.inputs) != len(self.negative.inputs):
            raise AdapterError(f"{len(self.positive.inputs)} texts and {len(self.negative.inputs)} texts are no pairs")


@dataclass(frozen=True)
class ControlVector:
    """One direction (d,) a block, by the block's number."""

    directions: Mapping[int, Tensor]

    def __add__(self, other: ControlVector) -> ControlVector:
        total = dict(self.directions)
        for block, v in other.directions.items():
            total[block] = total[block] + v if block in total else v
        return ControlVector(total)

    def __mul__(self, factor: float) -> ControlVector:
        return ControlVector({block: factor * v for block, v in self.directions.items()})

    __rmul__ = __mul__

    def __neg__(self) -> ControlVector:
        return self * -1.0

    def __sub__(self, other: ControlVector) -> ControlVector:
        return self + -other

    def __truediv__(self, divisor: float) -> ControlVector:
        return self * (1.0 / divisor)


class ControlledBlock(Wrapper):
    """A block whose output is shifted by c v."""

    v: Tensor

    def __init__(self, base: nn.Module, like: Tensor, d: int, normalize: bool) -> None:
        super().__init__(base)
        self.normalize = normalize
        self.register_buffer("v", like.new_zeros(d))

    def forward(self, x: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        out: Tensor = self.base(x, bias, *rest)  # (B, T, d)
        shift = self.strength * self.v
        if bias is not None:
            # A token that may not attend to itself is padding: the diagonal of the attention bias is closed there.
            real = bias.diagonal(dim1=-2, dim2=-1)[:, 0].isfinite()  # (B or 1, T)
            shift = shift * real[..., None]
        controlled = out + shift
        if not self.normalize:
            return controlled
        return controlled * (out.norm(dim=-1, keepdim=True) / controlled.norm(dim=-1, keepdim=True))


class Repeng(Adapter):
    """One vector a controlled block, read off the activations of contrasting texts."""

    def __init__(self, model: Decoder, blocks: Sequence[int], method: Method, normalize: bool) -> None:
        super().__init__(model)
        self.method = method
        like = model.embed.weight
        self.controlled = {
            block: ControlledBlock(model.stack.blocks[block], like, model.size.d, normalize) for block in blocks
        }
        for block, site in self.controlled.items():
            self.replace(f"stack.blocks.{block}", site)

    @property
    def vector(self) -> ControlVector:
        """The vector at strength 1. Set to another one, its directions for the controlled blocks are copied."""
        return ControlVector({block: site.v.clone() for block, site in self.controlled.items()})

    @vector.setter
    def vector(self, vector: ControlVector) -> None:
        missing = sorted(set(self.controlled) - set(vector.directions))
        if missing:
            raise AdapterError(f"the vector has no direction for block {missing[0]}; it has {list(vector.directions)}")
        for block, site in self.controlled.items():
            site.v.copy_(vector.directions[block])

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch | Contrast], learning_rate: float | None = None) -> list[float]:
        """Compute v from all pairs at once; plain batches give their own. The task losses under control, in order.

        ``learning_rate`` has no meaning here.
        """
        pairs = [batch if isinstance(batch, Contrast) else contrast_of(self.model, batch) for batch in batches]
        if not pairs:
            raise AdapterError("no texts to read a direction from")
        positive, negative = self.read([p.positive for p in pairs]), self.read([p.negative for p in pairs])
        self.vector = ControlVector(
            {block: direction(positive[block], negative[block], self.method) for block in self.controlled}
        )
        return [self.loss(p.positive).item() for p in pairs]

    @torch.no_grad()
    def read(self, batches: Iterable[Batch]) -> dict[int, Tensor]:
        """The output of every controlled block at the last token of every text, control switched off: (N, d) each."""
        states: dict[int, list[Tensor]] = {block: [] for block in self.controlled}
        handles = [
            site.base.register_forward_hook(lambda _, __, output, block=block: states[block].append(output))
            for block, site in self.controlled.items()
        ]
        kept, self.strength = self.strength, 0.0
        try:
            last = []
            for batch in batches:
                self.model(batch)
                last.append(last_token(batch))
        finally:
            self.strength = kept
            for handle in handles:
                handle.remove()
        return {
            block: torch.cat([h[torch.arange(len(h), device=h.device), t] for h, t in zip(found, last, strict=True)])
            for block, found in states.items()
        }


def attach(
    model: nn.Module,
    *,
    layers: Sequence[int] | None = None,
    method: Method = "pca_diff",
    normalize: bool = False,
) -> Adapter:
    """Control the blocks ``layers`` of a decoder, by default all but the first; -1 is the last.

    ``method`` is how ``fit`` computes a direction; ``normalize`` gives every controlled token its norm back.
    """
    if not isinstance(model, Decoder):
        raise AdapterError(f"{type(model).__name__} is no decoder: control vectors are read and written there")
    count = model.size.L
    layers = list(range(1, count)) if layers is None else layers
    blocks = sorted(layer % count for layer in layers if -count <= layer < count)
    if not layers or len(set(blocks)) != len(layers):
        raise AdapterError(f"layers are {list(layers)}; allowed: one or more of {-count} to {count - 1}, none twice")
    if method not in get_args(Method):
        raise AdapterError(f"method is {method!r}; allowed: {', '.join(get_args(Method))}")
    return Repeng(model, blocks, method, normalize)


def direction(positive: Tensor, negative: Tensor, method: Method) -> Tensor:
    """v (d,) from the states (N, d) of N pairs; in float32 where they are in less."""
    positive, negative = (h.to(torch.promote_types(h.dtype, torch.float32)) for h in (positive, negative))
    difference = positive - negative
    if method == "cluster_mean":
        return difference.mean(dim=0)
    if method == "pca_center":
        difference = torch.cat([difference, -difference]) / 2
    if method == "pca_shuffled":
        # Drawn on the CPU: the same pairs are turned on every device.
        signs = 2 * torch.randint(2, (len(difference), 1)) - 1
        difference = difference * signs.to(difference)
    v = first_component(difference)
    higher, lower = (positive @ v > negative @ v).sum(), (positive @ v < negative @ v).sum()
    return -v if lower > higher else v


def first_component(rows: Tensor) -> Tensor:
    """The unit vector (d,) along which rows (N, d) vary most about their mean; AdapterError where they do not vary."""
    _, spread, components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    if float(spread[0]) == 0.0:
        raise AdapterError(f"{len(rows)} rows that do not vary have no principal component; give more, or other pairs")
    return components[0]


def last_token(batch: Batch) -> Tensor:
    """Position of every row's last token that is no padding, on either side, (B,)."""
    places = torch.arange(batch.inputs.shape[1], device=batch.inputs.device).expand_as(batch.inputs)
    return (places if batch.visible is None else places * batch.visible).argmax(dim=1)


def contrast_of(model: nn.Module, batch: Batch) -> Contrast:
    """The decoder's sequences under its first rule and, with the other mark in front and else the same, its second.

    AdapterError for texts that do not begin with a mark.
    """
    assert isinstance(model, Decoder)
    marks = model.size.V - 2
    if int(batch.inputs[:, 0].min()) < marks:
        raise AdapterError(f"these texts do not begin with one of the marks {marks} and {marks + 1}: give Contrast")

    def marked(mark: int) -> Batch:
        inputs = torch.cat([torch.full_like(batch.inputs[:, :1], mark), batch.inputs[:, 1:]], dim=1)
        return Batch(inputs, batch.targets, batch.visible)

    return Contrast(marked(marks), marked(marks + 1))
