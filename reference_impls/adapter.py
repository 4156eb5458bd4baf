"""The one contract of an implementation.

    adapter = attach(model, rank=8)       # freezes the model, changes it in place, returns an Adapter
    adapter.parameters()                  # exactly what is trained
    adapter.loss(batch)                   # task loss plus the method's own terms
    adapter.after_step()                  # schedules, masks, projections
    adapter.strength = -1.0               # coefficient on the learned change, where the method has one
    adapter.state_dict()                  # the learned part alone
    adapter.merge(); adapter.unmerge()    # fold into the base weights and take out again
    adapter.detach()                      # the base model again, bit for bit

A method changes a model through four verbs only: ``replace`` a module, ``reparameterize`` a tensor, ``add`` a module,
``hook`` a module. Each records how to lift the change off and how to settle it again, so removal is right by
construction. Base tensors are never written to: what a method learns lives in modules of its own, called sites.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class AdapterError(RuntimeError):
    """A request that a method or its present state cannot honor; the message says what is possible instead."""


class Site(nn.Module):
    """What a method learns at one place of the model.

    ``strength`` is the coefficient c on the learned change; a site that has none leaves it unused.
    """

    strength: float = 1.0


class Wrapper(Site):
    """A site that takes the place of the module ``base`` and is called as ``base`` was."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def merged(self) -> dict[str, Tensor] | None:
        """New values for tensors of ``base`` by name that make ``base`` alone do the same; None: impossible."""
        return None


class DeltaLinear(Wrapper):
    """A linear layer plus an additive change of its weight: y = W x + b + c * delta(x).

    Subclasses say ``delta(x)`` (the fast form, (..., d_in) -> (..., d_out)) and ``delta_weight()`` (the definition,
    (d_out, d_in)). Both describe the change at strength 1.
    """

    base: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.delta(x)
        return self.base(x) + (change if self.strength == 1.0 else self.strength * change)

    def delta(self, x: Tensor) -> Tensor:
        raise AdapterError(f"{type(self).__name__} does not say how it changes an activation")

    def delta_weight(self) -> Tensor:
        raise AdapterError(f"{type(self).__name__} does not say how it changes the weight")

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


class Delta(Site):
    """A learned change of one tensor theta_0 of the base: ``forward(theta_0)`` is the tensor the model uses."""

    def delta_weight(self, base: Tensor) -> Tensor:
        """The change at strength 1, in the shape of ``base``."""
        raise AdapterError(f"{type(self).__name__} does not say how it changes a tensor")

    def forward(self, base: Tensor) -> Tensor:
        return base + self.strength * self.delta_weight(base)


@dataclass
class _Change:
    """One entry of the journal: how to put a change on the model and how to take it off."""

    settle: Callable[[], None]
    lift: Callable[[], None]


@dataclass
class _Place:
    """A site and where it sits: ``target`` is the base module whose tensors a merge rewrites."""

    name: str
    site: nn.Module
    target: nn.Module | None = None
    tensor: str | None = None

    def folded(self) -> dict[str, Tensor] | None:
        if isinstance(self.site, Wrapper):
            return self.site.merged()
        if self.tensor is not None and self.target is not None:
            return {self.tensor: getattr(self.target, self.tensor).detach().clone()}
        return {} if not isinstance(self.site, Site) else None


class Adapter:
    """A method attached to a model, in place. See the module's docstring for what it can do."""

    mergeable: ClassVar[bool] = False
    """Whether ``merge`` is offered at all; measured by the claims."""
    has_strength: ClassVar[bool] = True
    """Whether the method has a coefficient on its learned change."""
    family: ClassVar[str | None] = None
    """The family whose invariant holds: orthogonal, low-rank, sparse, scaling, side-network; None: no invariant."""
    inert: ClassVar[tuple[str, ...]] = ()
    """Endings of names of trained tensors that provably get no gradient; the method's file says why."""
    learning_rate: ClassVar[float] = 1e-2
    """A step size that suits the small models here; papers' own values are in the entries."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._places: list[_Place] = []
        self._changes: list[_Change] = []
        self._kept: list[tuple[nn.Parameter, Tensor]] | None = None
        self._strength = 1.0
        self._flags = {name: p.requires_grad for name, p in model.named_parameters()}
        self._attached = True
        self._freeze()

    def _freeze(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    # The verbs: everything a method does to a model.

    def replace(self, path: str, site: Wrapper) -> Wrapper:
        """Put ``site``, which holds the present module as ``site.base``, in the place ``path``."""
        parent, name = self._parent(path)
        base = getattr(parent, name)
        self._place(_Place(path, site, base))
        self._record(lambda: setattr(parent, name, site), lambda: setattr(parent, name, base))
        return site

    def reparameterize(self, path: str, site: Delta) -> Delta:
        """Compute the tensor ``path`` (such as ``blocks.0.mlp.up.bias``) as ``site(tensor)`` from now on."""
        module, name = self._parent(path)
        if parametrize.is_parametrized(module, name):
            raise AdapterError(f"{path} is reparameterized already; detach the other adapter first")
        order = list(module._parameters)

        def lift() -> None:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            module._parameters = {key: module._parameters[key] for key in order}

        self._place(_Place(path, site, module, name))
        self._record(lambda: _register(module, name, site), lift)
        return site

    def add(self, path: str, name: str, module: nn.Module) -> nn.Module:
        """Give the module at ``path`` ("" is the model) a further child ``name``, for hooks or wrappers to use."""
        parent = self.model.get_submodule(path)
        if hasattr(parent, name):
            raise AdapterError(f"{path or 'the model'} already has something named {name!r}")
        self._place(_Place(f"{path}.{name}" if path else name, module))
        self._record(lambda: parent.add_module(name, module), lambda: delattr(parent, name))
        return module

    def hook(
        self,
        path: str,
        *,
        pre: Callable[..., Any] | None = None,
        post: Callable[..., Any] | None = None,
    ) -> None:
        """Call ``pre(module, args)`` before and ``post(module, args, output)`` after the module at ``path``."""
        module = self.model.get_submodule(path)
        handles: list[Any] = []

        def settle() -> None:
            if pre is not None:
                handles.append(module.register_forward_pre_hook(pre))
            if post is not None:
                handles.append(module.register_forward_hook(post))

        def lift() -> None:
            while handles:
                handles.pop().remove()

        self._record(settle, lift)

    def unfreeze(self, path: str) -> None:
        """Train a copy of every tensor of the module at ``path`` (a task head); the original is kept by itself."""
        for name, parameter in list(self.model.get_submodule(path).named_parameters()):
            self.reparameterize(f"{path}.{name}", FreeDelta(parameter))

    def _parent(self, path: str) -> tuple[nn.Module, str]:
        parent, _, name = path.rpartition(".")
        return self.model.get_submodule(parent), name

    def _place(self, place: _Place) -> None:
        if isinstance(place.site, Site):
            place.site.strength = self._strength
        self._places.append(place)

    def _record(self, settle: Callable[[], None], lift: Callable[[], None]) -> None:
        settle()
        self._changes.append(_Change(settle, lift))

    # What is trained, and how.

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors of exactly what is trained."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def parameters(self) -> list[nn.Parameter]:
        """Exactly what is trained."""
        return [p for _, p in self.named_parameters()]

    def count(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def loss(self, batch: Any) -> Tensor:
        """Task loss plus the method's own terms."""
        loss: Tensor = self.model.loss(batch)  # type: ignore[operator]
        return loss

    def after_step(self) -> None:
        """What the method does after an optimizer step: schedules, masks, projections. Default: nothing."""

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without decay over everything trained; methods with several step sizes make groups here."""
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.0)

    def fit(self, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """Train on ``batches``, one step each; the losses in order. Methods trained otherwise override this."""
        optimizer = self.optimizer(learning_rate or self.learning_rate)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            optimizer.step()
            self.after_step()
            losses.append(loss.item())
        return losses

    # Strength, merging, removal.

    @property
    def strength(self) -> float:
        """Coefficient c on the learned change: 1 as trained, 0 the base model where the method allows it."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not self.has_strength:
            raise AdapterError(f"{type(self).__name__} has no strength: its entry's reversibility note says why")
        if self._kept is not None:
            raise AdapterError("the adapter is merged; unmerge() before changing its strength")
        self._strength = float(value)
        for place in self._places:
            if isinstance(place.site, Site):
                place.site.strength = self._strength

    def merge(self) -> None:
        """Fold the learned change, at the present strength, into the base weights; the model has its own tree again.

        Raises AdapterError when the method cannot be merged. The base weights are kept, not recomputed.
        """
        if self._kept is not None:
            raise AdapterError("already merged; unmerge() first")
        if not self.mergeable:
            raise AdapterError(f"{type(self).__name__} cannot be merged: its entry's reversibility note says why")
        with torch.no_grad():
            folded = [(place, place.folded()) for place in self._places]
        stuck = [place.name for place, tensors in folded if tensors is None]
        if stuck:
            raise AdapterError(f"cannot be merged: {', '.join(stuck)}")
        self._lift()
        self._kept = []
        for place, tensors in folded:
            for name, value in (tensors or {}).items():
                parameter = getattr(place.target, name)
                self._kept.append((parameter, parameter.data))
                parameter.data = value.to(parameter.dtype)

    def unmerge(self) -> None:
        """Undo ``merge``: the kept base weights, bit for bit, and the adapter on top again."""
        if self._kept is None:
            raise AdapterError("not merged")
        for parameter, data in reversed(self._kept):
            parameter.data = data.to(parameter.device, parameter.dtype)
        self._kept = None
        for change in self._changes:
            change.settle()

    def detach(self) -> None:
        """Remove the method: the base model, bit for bit, with its own requires_grad flags."""
        if not self._attached:
            raise AdapterError("already detached")
        if self._kept is not None:
            self.unmerge()
        self._lift()
        self._changes.clear()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        self._attached = False

    def _lift(self) -> None:
        for change in reversed(self._changes):
            change.lift()

    # The learned part, alone.

    def sites(self) -> dict[str, nn.Module]:
        """Path -> what was put there, in the order of attaching."""
        return {place.name: place.site for place in self._places}

    def state_dict(self) -> dict[str, Tensor]:
        """The learned part alone, with whatever constants cannot be derived from the base model."""
        return {name: tensor.detach().clone() for name, tensor in self._learned().items()}

    def _learned(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, site in self.sites().items()
            for key, tensor in site.state_dict(keep_vars=True).items()
            if not key.startswith("base.")
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a learned part; AdapterError naming what is missing, unknown or of another shape."""
        mine = self._learned()
        wrong = [f"missing {k}" for k in mine if k not in state]
        wrong += [f"unknown {k}" for k in state if k not in mine]
        wrong += [
            f"{k} has shape {tuple(state[k].shape)}, expected {tuple(mine[k].shape)}"
            for k in mine
            if k in state and state[k].shape != mine[k].shape
        ]
        if wrong:
            raise AdapterError("this state does not fit the adapter: " + "; ".join(wrong[:5]))
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state[name])

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the learned part as safetensors, atomically; the number of bytes."""
        data = safetensors.torch.save({k: v.contiguous() for k, v in self.state_dict().items()})
        target = Path(path)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, target)
        return len(data)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what ``save`` wrote."""
        self.load_state_dict(safetensors.torch.load(Path(path).read_bytes()))


class FreeDelta(Delta):
    """An unrestricted change d of a tensor, starting at zero: theta = theta_0 + c * d."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.zeros_like(base))

    def delta_weight(self, base: Tensor) -> Tensor:
        return self.d


def _register(module: nn.Module, name: str, site: Delta) -> None:
    # torch's own check would call the site once: needless, and wrong for a site that counts its calls.
    parametrize.register_parametrization(module, name, site, unsafe=True)


def find(model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """Path -> module for every module whose last name is one of ``names`` (as q, v, up); AdapterError when none is."""
    wanted = set(names)
    found = {path: module for path, module in model.named_modules() if path.rpartition(".")[2] in wanted}
    if not found:
        last = sorted({path.rpartition(".")[2] for path, _ in model.named_modules() if path})
        raise AdapterError(
            f"no module named {' or '.join(sorted(wanted))} in {type(model).__name__}; it has: {', '.join(last)}"
        )
    return found


def find_linear(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Linear]:
    """Path -> linear layer for every module whose last name is one of ``names``; AdapterError for another module."""
    found = find(model, names)
    for path, module in found.items():
        if not isinstance(module, nn.Linear):
            raise AdapterError(f"{path} is a {type(module).__name__}; this method adapts linear layers")
    return found


def check_rank(rank: int) -> None:
    """AdapterError for a rank that is none."""
    if rank < 1:
        raise AdapterError(f"rank is {rank}; it must be at least 1")


def check_dropout(dropout: float) -> None:
    """AdapterError for a probability of dropping that is none, or that drops all."""
    if not 0 <= dropout < 1:
        raise AdapterError(f"dropout is {dropout}; it must be at least 0 and below 1")
