"""BitFit: what the paper says about it, checked."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.backbones.base import Backbone
from reference_impls.selective.bitfit import BitFit, attach

BERT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
BERT_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=28996, positions=512, C=2)


def away(kind: str = "encoder") -> tuple[Backbone, Adapter]:
    model = pretrained(kind).double()
    adapter = attach(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.2)
    return model, adapter


@pytest.mark.parametrize(
    ("size", "targets", "count"),
    [
        (BERT_BASE, None, 102_912),
        (BERT_LARGE, None, 272_384),
        (BERT_BASE, ("q", "up"), 46_080),
        (BERT_LARGE, ("q", "up"), 122_880),
    ],
)
def test_bias_counts_of_bert(size: Size, targets: tuple[str, ...] | None, count: int) -> None:
    assert attach(build("encoder", size, device="meta"), targets=targets, train_head=False).count() == count


@pytest.mark.parametrize(("targets", "percent"), [(None, 0.08), (("q", "up"), 0.04)])
def test_share_of_bert_large_is_that_of_the_paper(targets: tuple[str, ...] | None, percent: float) -> None:
    adapter = attach(build("encoder", BERT_LARGE, device="meta"), targets=targets, train_head=False)
    assert round(100 * adapter.count() / 333_579_264, 2) == percent


@cache
def bert() -> dict[str, int]:
    """Names of BERT-base's parameters in its own library, with a classifier, and their sizes."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def test_bias_count_is_that_of_the_library_s_bert() -> None:
    biases = {name: size for name, size in bert().items() if name.endswith(".bias") and "classifier" not in name}
    assert sum(biases.values()) == 102_912
    assert sum(size for name, size in biases.items() if "query" in name or "intermediate" in name) == 46_080


def test_names_matched_by_substring_as_officially_catch_more_than_is_asked_for() -> None:
    caught = [name for name in bert() if "output.dense.bias" in name and ".layer.0." in name]
    assert caught == [
        "bert.encoder.layer.0.attention.output.dense.bias",
        "bert.encoder.layer.0.output.dense.bias",
    ]
    ours = attach(pretrained("encoder"), targets=["down"], train_head=False)
    assert [name for name in ours.sites() if ".0." in name] == ["stack.blocks.0.mlp.down.bias"]


def test_a_subset_leaves_the_bias_of_the_pooler_alone_which_the_official_code_always_adds() -> None:
    sites = list(attach(pretrained("encoder"), targets=["q", "up"], train_head=False).sites())
    assert len(sites) == 2 * 3
    assert all(name.endswith((".q.bias", ".up.bias")) for name in sites)


def test_every_bias_and_the_head_are_trained_and_nothing_else() -> None:
    model = pretrained("encoder")
    names = {n for n, _ in model.named_parameters()}
    adapter = attach(model)
    assert set(adapter.sites()) == {n for n in names if n.endswith(".bias") and not n.startswith("lm_head")} | {
        "head.weight"
    }


def test_the_head_stays_frozen_when_asked() -> None:
    assert not [n for n in attach(pretrained("encoder"), train_head=False).sites() if n.startswith("head")]


def test_names_that_only_contain_bias_are_no_biases() -> None:
    model = pretrained("encoder")
    model.relative_attention_bias = torch.nn.Embedding(4, 2)  # T5 has a table of this name
    assert not [n for n in attach(model).sites() if "relative" in n]


def test_key_biases_get_no_gradient_and_stay_while_the_others_move() -> None:
    model = pretrained("encoder").double()
    adapter = attach(model)
    assert isinstance(adapter, BitFit)
    adapter.fit([model.batch(i) for i in range(20)])
    change = adapter.amount_of_change()
    keys = [value for name, value in change.items() if name.endswith(".k.bias")]
    others = [value for name, value in change.items() if not name.endswith(".k.bias")]
    assert len(keys) == 3
    assert max(keys) < 1e-6
    assert min(others) > 1e-3


def test_key_slice_of_a_fused_bias_gets_no_gradient() -> None:
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    attention(x, x, x)[0].square().sum().backward()
    q, k, v = attention.in_proj_bias.grad.abs().view(3, 12).amax(1).tolist()
    assert k < 1e-12 < 1e-4 < min(q, v)


@pytest.mark.parametrize("amount", [0.5, 100.0])
def test_any_key_bias_leaves_the_output_as_it_is(amount: float) -> None:
    model, _ = away()
    batch = model.batch(0)
    before = model(batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".k.parametrizations.bias.0.d"):
                parameter += amount
    assert torch.allclose(model(batch), before, atol=1e-10)


def test_amount_of_change_is_the_mean_absolute_difference() -> None:
    model, adapter = away()
    assert isinstance(adapter, BitFit)
    base = pretrained("encoder").double()
    name = "stack.blocks.1.mlp.up.bias"
    now, start = model.stack.blocks[1].mlp.up.bias, base.get_parameter(name)
    expected = (now - start).abs().sum().item() / start.numel()
    assert adapter.amount_of_change()[name] == pytest.approx(expected, rel=1e-12)
    assert "head.bias" not in adapter.amount_of_change()


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 2.0])
def test_strength_shifts_an_affine_map_by_exactly_c_db(c: float) -> None:
    model, adapter = away()
    layer, x = model.stack.blocks[0].mlp.up, torch.randn(3, 32, dtype=torch.float64)
    shift: Tensor = layer.parametrizations.bias[0].d
    adapter.strength = c
    expected = x @ layer.weight.T + layer.parametrizations.bias.original + c * shift
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-14)


def test_fit_equals_training_the_biases_in_place() -> None:
    model, twin = pretrained("encoder").double(), pretrained("encoder").double()
    adapter = attach(model)
    trained = [p for n, p in twin.named_parameters() if n.startswith("head.") or n.endswith(".bias")]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    for i in range(5):
        optimizer.zero_grad()
        twin.loss(twin.batch(i)).backward()
        optimizer.step()
    adapter.fit((model.batch(i) for i in range(5)), learning_rate=0.01)
    assert torch.allclose(model(model.batch(9)), twin(twin.batch(9)), rtol=0, atol=1e-9)


def test_decay_pulls_to_the_pretrained_bias_not_to_zero() -> None:
    model, adapter = away()
    start = pretrained("encoder").double().pooler.bias
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.5, weight_decay=1.0)
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(80):
        optimizer.step()
    assert torch.allclose(model.pooler.bias, start, atol=1e-9)
    assert start.abs().max().item() > 1e-3


def test_decay_of_biases_trained_in_place_pulls_to_zero() -> None:
    bias = torch.nn.Parameter(pretrained("encoder").pooler.bias.detach().clone())
    optimizer = torch.optim.AdamW([bias], lr=0.5, weight_decay=1.0)
    bias.grad = torch.zeros_like(bias)
    for _ in range(80):
        optimizer.step()
    assert bias.abs().max() < 1e-9


def test_the_step_size_of_full_fine_tuning_hardly_moves_anything() -> None:
    def drop(rate: float) -> float:
        model = pretrained("encoder")
        adapter = attach(model)
        held_out = model.batch(50_000, count=256)
        before = model.loss(held_out).item()
        adapter.fit((model.batch(i) for i in range(60)), learning_rate=rate)
        return before - model.loss(held_out).item()

    assert drop(1e-5) < 0.05 * drop(1e-2)


def test_peft_trains_biases_beside_lora_alone() -> None:
    peft = pytest.importorskip("peft")
    assert not [name for name in peft.PeftType.__members__ if "BIT" in name]
    model = peft.get_peft_model(pretrained("decoder"), peft.LoraConfig(r=2, bias="all", target_modules=["q"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-1] for name in trained if "lora_" not in name} == {"bias"}
    assert [name for name in trained if "lora_" in name]


@pytest.mark.parametrize(
    "model",
    [
        build("encoder-decoder", Size(L=1, L_dec=1, norm="rms", bias=False, positions=0)),
        build("decoder", Size(L=1, norm="rms", bias=False, gated=True)),
    ],
    ids=["T5", "LLaMA"],
)
def test_a_model_without_biases_is_refused_and_left_alone(model: Backbone) -> None:
    with pytest.raises(AdapterError, match="no bias vectors"):
        attach(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("targets", [("query",), ()])
def test_unknown_targets_are_named_with_what_is_there(targets: tuple[str, ...]) -> None:
    with pytest.raises(AdapterError, match="modules with a bias: down, k, norm1"):
        attach(pretrained("encoder"), targets=targets)
