"""Trainable tokens: what PEFT's tuner does, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper
from reference_impls.backbones import pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.claims.removal import differences
from reference_impls.registry import load
from reference_impls.selective.trainable_tokens import TokenEmbedding, attach

from .parity import copy_to, drift, in_peft, matrices_computed, note, randomize, twin
from .refused import assert_refused

IDS = [7, 2, 4]
"""Out of order on purpose."""


class Language(nn.Module):
    """Token -> logits through a table, and through the same table again where the head is tied."""

    def __init__(self, tied: bool, bias: bool = False, tokens: int = 9, width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.head = nn.Linear(width, tokens, bias=bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


def language(tied: bool, bias: bool = False) -> Language:
    return Language(tied, bias).double()


def rows(adapter: Adapter) -> TokenEmbedding:
    site = adapter.sites()["embed"]
    assert isinstance(site, TokenEmbedding)
    return site


def everything() -> Tensor:
    return torch.arange(9).view(3, 3)


def test_count_is_a_row_a_token_once_also_with_a_tied_head() -> None:
    gemma = nn.ModuleDict({"embed": nn.Embedding(256_000, 2304, device="meta")})
    assert attach(gemma, token_indices=[5, 9]).count() == 4_608
    assert gemma["embed"].base.weight.numel() == 589_824_000  # type: ignore[union-attr,operator]
    assert attach(language(tied=True), token_indices=IDS).count() == 3 * 5


@pytest.mark.parametrize("tied", [False, True])
def test_start_is_the_base_model_and_random_rows_are_not(tied: bool) -> None:
    model = language(tied)
    before = model(everything())
    adapter = attach(model, token_indices=IDS)
    assert torch.equal(model(everything()), before)
    adapter.detach()
    adapter = attach(model, token_indices=IDS, init_weights=False)
    assert not torch.allclose(model(everything()), before, atol=0.1)
    adapter.strength = 0.0
    assert torch.equal(model(everything()), before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("c", [1.0, -1.0, 0.5])
def test_chosen_rows_are_replaced_on_both_sides_of_a_tied_head(c: float, tied: bool, bias: bool) -> None:
    model = language(tied, bias)
    table, offset = model.embed.weight.detach().clone(), model.head.bias
    adapter = attach(model, token_indices=IDS)
    randomize(adapter.parameters())
    adapter.strength = c
    D = rows(adapter).D
    ids = sorted(IDS)
    replaced = table.clone()
    replaced[ids] = table[ids] + c * (D - table[ids])
    head = replaced if tied else model.get_parameter("head.weight")
    tokens = torch.tensor([[7, 0, 2], [4, 8, 7]])
    expected = F.linear(torch.tanh(replaced[tokens]), head, offset)
    assert torch.allclose(model(tokens), expected, rtol=0, atol=1e-12)
    for site in adapter.sites().values():
        assert isinstance(site, Wrapper)
        assert torch.allclose((site.merged() or {})["weight"], replaced, rtol=0, atol=1e-15)
    adapter.merge()
    assert torch.allclose(model.embed.weight, replaced, rtol=0, atol=1e-15)
    assert (model.head.weight is model.embed.weight) == tied
    assert torch.allclose(model(tokens), expected, rtol=0, atol=1e-12)
    adapter.detach()
    assert torch.equal(model.embed.weight, table)
    assert (model.head.weight is model.embed.weight) == tied


def test_text_without_chosen_tokens_is_the_base_model_s_unless_the_head_is_tied() -> None:
    others = torch.tensor([[0, 1, 3, 5, 6, 8]])
    for tied in (False, True):
        model = language(tied)
        before = model(others)
        randomize(attach(model, token_indices=IDS).parameters())
        changed = (model(others) != before).flatten(0, 1).any(0)
        assert changed.nonzero().flatten().tolist() == (sorted(IDS) if tied else [])


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_other_rows_stay_bit_identical_with_any_optimizer_and_decay(optimizer: type[torch.optim.Optimizer]) -> None:
    model = language(tied=True)
    table = model.embed.weight.detach().clone()
    adapter = attach(model, token_indices=IDS)
    steps = optimizer(adapter.parameters(), lr=0.1, weight_decay=0.5)  # type: ignore[call-arg]
    for _ in range(3):
        steps.zero_grad()
        model(everything()).square().sum().backward()
        steps.step()
    adapter.merge()
    changed = (model.embed.weight != table).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(IDS)
    adapter.unmerge()
    assert rows(adapter).base.weight.grad is None


def test_gradient_of_tied_rows_is_the_sum_of_both_sides() -> None:
    tied = language(tied=True)
    D = rows(attach(tied, token_indices=IDS)).D
    weights = torch.randn(3, 3, 9, dtype=torch.float64)
    (both,) = torch.autograd.grad((tied(everything()) * weights).sum(), D)
    plain = language(tied=False)
    with torch.no_grad():
        plain.embed.weight.copy_(tied.get_parameter("embed.base.weight"))
        plain.head.weight.copy_(plain.embed.weight)
    sides = torch.autograd.grad((plain(everything()) * weights).sum(), [plain.embed.weight, plain.head.weight])
    ids = sorted(IDS)
    assert torch.allclose(both, sides[0][ids] + sides[1][ids], rtol=0, atol=1e-12)
    assert all(side[ids].abs().max() > 1e-3 for side in sides)


@pytest.mark.parametrize("claim", ["family-invariant", "saves", "strength", "detachable"])
def test_claims_hold_for_random_rows(claim: str) -> None:
    expected = Expected(False, True, True, "linear", {"token_indices": [22, 3], "init_weights": False})
    result = measure(claim, Trial(load("trainable-tokens"), "decoder", expected))
    assert result.status == "verified", result


def test_all_tokens_train_the_whole_table() -> None:
    model, plain = language(tied=True), language(tied=True)
    plain.load_state_dict(model.state_dict())
    adapter = attach(model, token_indices=range(9))
    (a,) = torch.autograd.grad(model(everything()).square().sum(), rows(adapter).D)
    (b,) = torch.autograd.grad(plain(everything()).square().sum(), plain.embed.weight)
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_nothing_of_the_table_s_size_is_computed() -> None:
    model = Language(tied=True, tokens=40, width=6)
    attach(model, token_indices=[3, 30])
    tokens = torch.arange(40)[None, :10]
    shapes = matrices_computed(lambda: model(tokens))
    assert not {(40, 6), (6, 40)} & shapes
    assert (2, 6) in shapes


class Scaled(nn.Embedding):
    """Scales what it looks up, as Gemma's."""

    def __init__(self) -> None:
        super().__init__(9, 5)
        self.register_buffer("embed_scale", torch.tensor(3.0), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * self.get_buffer("embed_scale")


def test_scale_of_an_embedding_applies_to_the_learned_rows_too() -> None:
    model = nn.ModuleDict({"embed": Scaled()})
    before = model["embed"](everything())
    adapter = attach(model, token_indices=IDS)
    assert torch.equal(model["embed"](everything()), before)
    copy_to(rows(adapter).D, torch.ones(3, 5))
    assert torch.equal(model["embed"](torch.tensor([2])), torch.full((1, 5), 3.0))


def test_rows_keep_their_meaning_when_the_table_is_made_anew() -> None:
    adapter = attach(language(tied=True), token_indices=IDS)
    randomize(adapter.parameters())
    learned = rows(adapter).D.detach().clone()
    anew = language(tied=True)
    second = attach(anew, token_indices=IDS)
    second.load_state_dict(adapter.state_dict())
    second.merge()
    assert torch.equal(anew.embed.weight[sorted(IDS)], learned)


def test_rows_are_saved_once_with_their_tokens() -> None:
    adapter = attach(language(tied=True), token_indices=IDS)
    assert sorted(adapter.state_dict()) == ["embed.D", "embed.ids"]
    other = attach(language(tied=True), token_indices=[1, 2, 4])
    with pytest.raises(AdapterError, match=r"belong to the tokens \[2, 4, 7\], not \[1, 2, 4\]"):
        other.load_state_dict(adapter.state_dict())


def test_a_copied_model_has_its_own_rows() -> None:
    model = language(tied=True)
    adapter = attach(model, token_indices=IDS)
    other = twin(model)
    before = other(everything())
    randomize(adapter.parameters())
    assert torch.equal(other(everything()), before)
    assert not torch.allclose(model(everything()), before, atol=1e-2)


def test_tied_model_runs_on_meta_and_in_bfloat16() -> None:
    model = Language(tied=True, bias=True)
    adapter = attach(model, token_indices=IDS)
    model.bfloat16()
    model(everything()).sum().backward()
    assert rows(adapter).D.grad is not None
    assert rows(adapter).D.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    model.to("meta")
    model(everything().to("meta")).sum().backward()


def test_detached_model_is_the_base_and_a_second_adapter_has_to_wait() -> None:
    model = pretrained("decoder")
    adapter = attach(model, token_indices=IDS)
    with pytest.raises(AdapterError, match="embed is a TokenEmbedding"):
        attach(model, token_indices=[1])
    adapter.fit([model.batch(0)])
    adapter.detach()
    assert differences(model, pretrained("decoder")) == []


def in_order(gradient: Tensor) -> Tensor:
    """Theirs are in the order that was given, ours are sorted."""
    return gradient[torch.tensor(IDS).argsort()]


def test_equals_peft() -> None:
    layer = nn.Embedding(9, 5).double()
    theirs = in_peft("TrainableTokensConfig", layer, token_indices=IDS)
    D = theirs.trainable_tokens_delta["default"]
    model = nn.ModuleDict({"embed": twin(layer)})
    adapter = attach(model, token_indices=IDS)
    ours = rows(adapter)
    assert torch.equal(ours.D, in_order(D))
    randomize([ours.D])
    copy_to(D, ours.D[torch.tensor(IDS).argsort().argsort()])
    assert torch.equal(in_order(D), ours.D)
    tokens, weights = everything(), torch.randn(3, 3, 5, dtype=torch.float64)
    mine, other = model["embed"](tokens), theirs(tokens)
    assert torch.equal(mine, other)
    (a,) = torch.autograd.grad((mine * weights).sum(), ours.D)
    (b,) = torch.autograd.grad((other * weights).sum(), D)
    note(mine, other, [a], [in_order(b)])
    assert torch.allclose(a, in_order(b), rtol=0, atol=1e-15)
    theirs.merge()
    assert torch.equal(theirs.base_layer.weight, ours.merged()["weight"])


def tied_in_peft(model: Language) -> Any:
    """peft's table and a head tied to it, around copies of the model's."""
    layers = pytest.importorskip("peft.tuners.trainable_tokens.layer")
    table = in_peft("TrainableTokensConfig", model.embed, token_indices=IDS)
    head = twin(model.head)
    head.weight = table.base_layer.weight
    tied = layers.TrainableTokensLayer(head, "default", None, tied_adapter=table)
    return table, tied


def test_tied_head_equals_peft() -> None:
    model = language(tied=True)
    table, tied = tied_in_peft(model)
    D = table.trainable_tokens_delta["default"]
    ours = rows(attach(model, token_indices=IDS))
    randomize([ours.D])
    copy_to(D, ours.D[torch.tensor(IDS).argsort().argsort()])
    weights = torch.randn(3, 3, 9, dtype=torch.float64)
    mine, other = model(everything()), tied(torch.tanh(table(everything())))
    assert torch.allclose(mine, other, rtol=0, atol=1e-14)
    (a,) = torch.autograd.grad((mine * weights).sum(), ours.D)
    (b,) = torch.autograd.grad((other * weights).sum(), D)
    note(mine, other, [a], [in_order(b)])
    assert torch.allclose(a, in_order(b), rtol=0, atol=1e-13)


def test_tied_head_of_peft_drops_its_bias() -> None:
    model = language(tied=True, bias=True)
    _, tied = tied_in_peft(model)
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.allclose(tied(x), model.head(x) - model.head.bias, rtol=0, atol=1e-14)


def test_random_rows_of_peft_are_merged_out_again_exactly() -> None:
    layer = nn.Embedding(9, 5)
    theirs = in_peft("TrainableTokensConfig", layer, token_indices=IDS, init_weights=False)
    assert not torch.allclose(theirs.trainable_tokens_delta["default"], layer.weight[IDS].double())
    assert torch.equal(theirs.trainable_tokens_original["default"], layer.weight[IDS].double())
    assert max(drift(theirs, 5)) == 0.0


def test_a_padding_row_of_peft_never_learns() -> None:
    layer = nn.Embedding(9, 5, padding_idx=2)
    theirs = in_peft("TrainableTokensConfig", layer, token_indices=IDS)
    theirs(everything()).sum().backward()
    assert theirs.trainable_tokens_delta["default"].grad.abs().sum(1).tolist() == [5.0, 0.0, 5.0]
    with pytest.raises(AdapterError, match=r"contains \[2\]"):
        attach(nn.ModuleDict({"embed": layer}), token_indices=IDS)


def test_adapters_of_peft_with_overlapping_tokens_are_refused_when_both_are_active() -> None:
    theirs = in_peft("TrainableTokensConfig", nn.Embedding(9, 5), token_indices=IDS)
    theirs.token_indices["second"] = [4, 5]
    with pytest.raises(ValueError, match="already defined"):
        theirs._check_overlapping_tokens(["default", "second"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"token_indices": []}, r"token_indices is \[\]; it must name tokens, each once"),
        ({"token_indices": [3, 3]}, r"token_indices is \[3, 3\]"),
        ({"token_indices": [3, 24, -1]}, r"contains \[24, -1\]; the table has rows 0 to 23"),
        ({"token_indices": [3], "embedding": "head"}, "head is a Linear; trainable tokens are rows of an embedding"),
        ({"token_indices": [3], "embedding": "table"}, "no module named table"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_tables_that_change_by_themselves_or_are_shared_otherwise_are_refused() -> None:
    with pytest.raises(AdapterError, match="renormalizes its rows in place"):
        attach(nn.ModuleDict({"embed": nn.Embedding(9, 5, max_norm=1.0)}), token_indices=[1])
    model = nn.ModuleDict({"embed": nn.Embedding(9, 5), "other": nn.Embedding(9, 5)})
    model["other"].weight = model["embed"].weight
    with pytest.raises(AdapterError, match="other, which shares the table, is a Embedding"):
        attach(model, token_indices=[1])
    two = nn.ModuleList([language(tied=False), language(tied=False)])
    with pytest.raises(AdapterError, match="several modules are named embed"):
        attach(two, token_indices=[1])
