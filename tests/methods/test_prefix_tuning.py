"""Prefix-tuning: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.claims import measure
from reference_impls.claims.trial import like
from reference_impls.prompt import prompt_tuning
from reference_impls.prompt.prefix_tuning import (
    Prefix,
    PrefixTuning,
    attach,
    put_in_front,
    real_activations,
    start_from,
)

from .cases import trial
from .parity import GPT2_MEDIUM, copy_to, note, randomize, twin

BART_LARGE = Size(L=12, L_dec=12, d=1024, f=4096, heads=16, head_dim=64, V=50265, positions=1026)
WORDS = [3, 17, 5]


def tuned(kind: str = "decoder", **keywords: Any) -> tuple[Backbone, PrefixTuning, Batch]:
    """A model in float64 with a random prefix, and a batch."""
    model = pretrained(kind).double()
    adapter = attach(model, **{"length": 4, "hidden": 8} | keywords)
    assert isinstance(adapter, PrefixTuning)
    randomize(adapter.parameters())
    return model, adapter, like(model, model.batch(0))


def attention(queries: int = 5, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of two sequences, three heads of width 4."""
    return tuple(torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (queries, keys, keys))  # type: ignore[return-value]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """sum over the keys of exp(q . k / sqrt d_h), one number a query."""
    return (q @ k.mT / math.sqrt(q.shape[-1])).exp().sum(-1, keepdim=True)


def prefix_of(adapter: PrefixTuning, name: str = "stack.prefix") -> Prefix:
    return adapter.prefixes()[name]


def test_counts_of_gpt2_medium() -> None:
    adapter = attach(build("decoder", GPT2_MEDIUM, device="meta"), length=10, hidden=512)
    assert isinstance(adapter, PrefixTuning)
    assert adapter.count() == 25_750_016
    assert sum(t.numel() for t in adapter.state_dict().values()) == 491_520
    adapter.drop_reparameterization()
    assert adapter.count() == 491_520
    assert round(100 * 491_520 / 354_823_168, 2) == 0.14


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("decoder", {"length": 4, "hidden": 0}),
        ("encoder-decoder", {"length": 4, "hidden": 0}),
        ("encoder-decoder", {"length": 0, "hidden": 0}),
    ],
)
def test_the_formula_holds_for_other_settings(kind: str, settings: dict[str, Any]) -> None:
    usual = trial("prefix-tuning", kind)
    other = replace(usual, expected=replace(usual.expected, hyperparameters=settings))
    assert measure("trained-parameters", other).status == "verified"


def test_an_encoder_decoder_has_three_prefixes_with_an_mlp_each() -> None:
    adapter = attach(build("encoder-decoder", BART_LARGE, device="meta"), length=200, hidden=800)
    assert isinstance(adapter, PrefixTuning)
    assert list(adapter.prefixes()) == ["encoder.prefix", "decoder.prefix", "decoder.prefix_cross"]
    width = 12 * 2 * 1024
    assert adapter.count() == 3 * (200 * 1024 + 1024 * 800 + 800 + 800 * width + width)
    adapter.drop_reparameterization()
    assert adapter.count() == 3 * 200 * width


def test_every_prefix_of_an_encoder_decoder_matters() -> None:
    model, adapter, batch = tuned("encoder-decoder", hidden=0)
    before = model(batch)
    for prefix in adapter.prefixes().values():
        assert prefix.P is not None
        kept = prefix.P.detach().clone()
        randomize([prefix.P], seed=5)
        assert not torch.allclose(model(batch), before, atol=1e-3)
        copy_to(prefix.P, kept)


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_a_prefix_of_no_positions_is_the_base_model(kind: str) -> None:
    model = pretrained(kind).double()
    batch = model.batch(0)
    before = model(batch)
    attach(model, length=0)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-13)


def test_an_encoder_takes_a_prefix_and_padding_changes_nothing() -> None:
    model, _, batch = tuned("encoder")
    assert batch.visible is not None
    before = model(batch)
    padded = torch.where(batch.visible, batch.inputs, 5)
    assert torch.equal(model(Batch(padded, batch.targets, batch.visible)), before)
    shorter = batch.visible.sum(1).max()
    cut = Batch(batch.inputs[:, :shorter], batch.targets, batch.visible[:, :shorter])
    assert torch.allclose(model(cut), before, rtol=0, atol=1e-12)


def test_a_prefix_made_of_words_is_a_prompt_of_these_words() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    prompt = torch.tensor(WORDS).expand(len(batch.inputs), -1)
    prompted = model(Batch(torch.cat([prompt, batch.inputs], dim=1), batch.targets))[:, len(WORDS) :]
    plain = model(batch)
    attach(model, length=len(WORDS), hidden=0, words=WORDS)
    assert torch.allclose(model(batch), prompted, rtol=0, atol=1e-12)
    assert not torch.allclose(plain, prompted, atol=1e-2)


def test_what_a_soft_prompt_does_a_prefix_does_too() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    soft = prompt_tuning.attach(model, length=4)
    randomize(soft.parameters())
    seen: list[Tensor] = []
    cores = [block.attention.core for block in model.get_submodule("stack.blocks")]  # type: ignore[union-attr]
    handles = [core.register_forward_pre_hook(lambda _, args: seen.extend(args[1:3])) for core in cores]
    expected = model(batch)
    for handle in handles:
        handle.remove()
    soft.detach()
    adapter = attach(model, length=4, hidden=0)
    activations = torch.cat([x[0, :, :4].transpose(0, 1).flatten(1) for x in seen], dim=-1)
    copy_to(adapter.parameters()[0], activations)
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-12)


def test_the_causal_mask_hides_nothing_of_the_prefix() -> None:
    model, adapter, batch = tuned(hidden=0)
    before = model(batch)[:, 0]
    with torch.no_grad():
        adapter.parameters()[0][-1] += 1
    assert (model(batch)[:, 0] - before).abs().amax(-1).min() > 1e-3


def test_permuting_the_positions_of_a_prefix_changes_nothing() -> None:
    model, adapter, batch = tuned(hidden=0)
    before = model(batch)
    P = adapter.parameters()[0]
    copy_to(P, P[[2, 0, 3, 1]].clone())
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)


def test_text_begins_at_the_position_behind_the_prefix() -> None:
    model, adapter, batch = tuned(length=3)
    seen: list[Tensor] = []
    model.get_submodule("stack.norm_in").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    positions = model.get_parameter("stack.positions.weight")
    expected = model.get_submodule("embed")(batch.inputs) + positions[3 : 3 + batch.inputs.shape[1]]
    assert torch.equal(seen[0], expected)
    adapter.detach()


@pytest.mark.parametrize(("kind", "stack"), [("encoder-decoder", "decoder"), ("encoder", "stack")])
def test_encoders_and_the_sides_of_an_encoder_decoder_keep_their_positions(kind: str, stack: str) -> None:
    model = build(kind, Size(L_dec=2)).double()
    batch = like(model, model.batch(0))
    seen: list[Tensor] = []
    model.get_submodule(f"{stack}.norm_in").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    attach(model, length=3)
    model(batch)
    assert torch.equal(seen[0], seen[1])


def test_more_positions_than_the_model_has_are_refused() -> None:
    model = pretrained("decoder")
    attach(model, length=60)
    with pytest.raises(AdapterError, match="a prefix of 60 and 13 tokens are more positions than the model has"):
        model(model.batch(0))


def test_a_prefix_draws_attention_to_itself_by_the_share_lambda() -> None:
    q, k, v = attention()
    prefix_k, prefix_v = (torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    causal = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1)
    for bias, text in ((None, scores(q, k)), (causal, (q @ k.mT / 2 + causal).exp().sum(-1, keepdim=True))):
        share = scores(q, prefix_k) / (scores(q, prefix_k) + text)
        expected = (1 - share) * attend(q, k, v, bias) + share * attend(q, prefix_k, prefix_v)
        assert torch.allclose(attend(*put_in_front(prefix_k, prefix_v, q, k, v, bias)), expected, rtol=0, atol=1e-12)


def test_a_relative_position_bias_says_nothing_about_a_prefix() -> None:
    model, _, batch = tuned("encoder-decoder")
    seen: list[Tensor] = []
    core = model.get_submodule("encoder.blocks.0.attention.core")
    core.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    model(batch)
    assert seen[0].shape[-1] == 4 + batch.inputs.shape[1]
    assert not seen[0][..., :4].any()
    assert seen[0][..., 4:].abs().max() > 1e-3


def test_zero_keys_and_values_take_their_share_and_pull_towards_nothing() -> None:
    q, k, v = attention()
    nothing = torch.zeros(3, 2, 4, dtype=torch.float64)
    left = scores(q, k) / (scores(q, k) + 2)
    expected = left * attend(q, k, v)
    assert torch.allclose(attend(*put_in_front(nothing, nothing, q, k, v)), expected, rtol=0, atol=1e-12)
    assert left.max() < 0.99


def test_a_zero_prefix_is_not_the_base_model_and_neither_is_strength_zero() -> None:
    model, adapter, batch = tuned(hidden=0)
    base = pretrained("decoder").double()(batch)
    adapter.strength = 0.0
    off = model(batch)
    adapter.strength = 1.0
    with torch.no_grad():
        adapter.parameters()[0].zero_()
    assert torch.equal(model(batch), off)
    assert not torch.allclose(off, base, atol=1e-2)


def test_keys_without_a_score_remove_a_prefix() -> None:
    q, k, v = attention()
    q = q.abs()
    prefix_k = torch.full((3, 2, 4), -1e4, dtype=torch.float64)
    prefix_v = torch.randn(3, 2, 4, dtype=torch.float64)
    assert torch.allclose(attend(*put_in_front(prefix_k, prefix_v, q, k, v)), attend(q, k, v), rtol=0, atol=1e-14)


def test_the_fit_to_words_trains_the_mlp_and_leaves_the_embedding() -> None:
    model = pretrained("decoder")
    target = real_activations(model, WORDS, len(WORDS))
    adapter = attach(model, length=len(WORDS), hidden=64)
    assert isinstance(adapter, PrefixTuning)
    prefix = prefix_of(adapter)
    made_of = prefix.reparameterization
    assert made_of is not None
    embedding = made_of.embed.weight.detach().clone()
    before = F.mse_loss(prefix.whole(), target)
    start_from(prefix, target)
    assert F.mse_loss(prefix.whole(), target) < 0.6 * before
    assert torch.equal(made_of.embed.weight, embedding)
    assert all(p.grad is None for p in adapter.parameters())


def test_words_in_attach_start_the_prefix_on_their_activations() -> None:
    model = pretrained("decoder")
    target = real_activations(model, WORDS, len(WORDS))
    torch.manual_seed(1)
    random = attach(pretrained("decoder"), length=len(WORDS), hidden=64)
    torch.manual_seed(1)
    fitted = attach(model, length=len(WORDS), hidden=64, words=WORDS)
    assert isinstance(random, PrefixTuning)
    assert isinstance(fitted, PrefixTuning)
    distances = [F.mse_loss(prefix_of(a).whole(), target).item() for a in (fitted, random)]
    assert distances[0] < 0.6 * distances[1]


def test_dropping_the_reparameterization_changes_nothing_and_training_goes_on() -> None:
    model, adapter, batch = tuned("encoder-decoder")
    before = model(batch)
    adapter.drop_reparameterization()
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)
    assert [name for name, _ in adapter.named_parameters()] == [f"{name}.P" for name in adapter.prefixes()]
    losses = adapter.fit([batch] * 5)
    assert losses[-1] < losses[0]
    adapter.detach()
    assert torch.equal(model(batch), pretrained("encoder-decoder").double()(batch))


def test_a_prefix_without_mlp_takes_a_state_into_the_same_tensor() -> None:
    _, adapter, _ = tuned(hidden=0)
    (P,) = adapter.parameters()
    adapter.load_state_dict({"stack.prefix.P": torch.ones_like(P)})
    assert adapter.parameters()[0] is P
    assert bool((P == 1).all())


def test_a_state_that_does_not_fit_leaves_prefix_and_mlp_alone() -> None:
    model, adapter, batch = tuned()
    before, names = model(batch), [name for name, _ in adapter.named_parameters()]
    for state in ({}, {"stack.prefix.P": torch.zeros(2, 2)}, {**adapter.state_dict(), "stack.more": torch.zeros(1)}):
        with pytest.raises(AdapterError, match="this state does not fit"):
            adapter.load_state_dict(state)
    assert torch.equal(model(batch), before)
    assert [name for name, _ in adapter.named_parameters()] == names


@pytest.mark.parametrize("hidden", [0, 8])
def test_dropout_acts_on_what_the_mlp_makes(hidden: int) -> None:
    _, adapter, _ = tuned(hidden=hidden, dropout=0.5)
    prefix = prefix_of(adapter)
    k, v = prefix(1)
    whole = prefix.whole().unflatten(-1, (3, 2, 4, 8))[:, 1]  # (m, 2, h, d_h)
    both = torch.stack([k, v]).permute(2, 0, 1, 3)
    dropped = both == 0
    assert 0.3 < dropped.double().mean() < 0.7
    assert torch.allclose(both, torch.where(dropped, 0.0, 2 * whole), rtol=0, atol=1e-12)
    prefix.eval()
    assert torch.equal(torch.stack(prefix(1)).permute(2, 0, 1, 3), whole)


def test_starts_are_the_frameworks_own() -> None:
    torch.manual_seed(0)
    model = build("decoder", Size(d=64, heads=4, head_dim=16))
    made = attach(model, length=200, hidden=100)
    assert isinstance(made, PrefixTuning)
    mlp = prefix_of(made).reparameterization
    assert mlp is not None
    assert mlp.embed.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert mlp.inner.weight.abs().max() <= 1 / 8
    assert mlp.outer.weight.abs().max() <= 1 / 10
    made.detach()
    assert attach(model, length=200, hidden=0).parameters()[0].std().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("decoder", {"length": -1}, "length is -1, hidden 512; both must be 0 or more"),
        ("decoder", {"hidden": -1}, "both must be 0 or more"),
        ("decoder", {"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ("decoder", {"length": 2, "words": WORDS}, "3 token ids for a prefix of length 2"),
        ("encoder", {"length": 3, "words": WORDS}, "only in a decoder"),
        ("mlp", {}, "MLP has no attention for a prefix to stand in"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = pretrained(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in model.modules())


def gpt2(model: Backbone) -> Any:
    """The small decoder as a GPT-2 of the transformers library, with the same weights."""
    transformers = pytest.importorskip("transformers")
    size, ours = model.size, model.state_dict()
    config = transformers.GPT2Config(
        vocab_size=size.V,
        n_positions=size.positions,
        n_embd=size.d,
        n_layer=size.L,
        n_head=size.heads,
        n_inner=size.f,
        activation_function="gelu",
        tie_word_embeddings=False,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    names = {"transformer.wte.weight": "embed.weight", "transformer.wpe.weight": "stack.positions.weight"}
    names |= {f"transformer.ln_f.{t}": f"stack.norm_out.{t}" for t in ("weight", "bias")}
    state = {name: ours[mine] for name, mine in names.items()} | {"lm_head.weight": ours["head.weight"]}
    for layer in range(size.L):
        here, there = f"stack.blocks.{layer}.", f"transformer.h.{layer}."
        fused = [ours[f"{here}attention.{part}.weight"].T for part in "qkv"]
        state[f"{there}attn.c_attn.weight"] = torch.cat(fused, dim=1)
        state[f"{there}attn.c_attn.bias"] = torch.cat([ours[f"{here}attention.{part}.bias"] for part in "qkv"])
        for mine, name in (("attention.o", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
            state[f"{there}{name}.weight"] = ours[f"{here}{mine}.weight"].T
            state[f"{there}{name}.bias"] = ours[f"{here}{mine}.bias"]
        for mine, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            state |= {f"{there}{name}.{t}": ours[f"{here}{mine}.{t}"] for t in ("weight", "bias")}
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_whole_model_equals_peft_on_gpt2(hidden: int) -> None:
    peft = pytest.importorskip("peft")
    model, adapter, batch = tuned(hidden=hidden)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        prefix_projection=bool(hidden),
        encoder_hidden_size=hidden or None,
    )
    theirs = peft.get_peft_model(gpt2(pretrained("decoder").double()), config).double()
    encoder = theirs.prompt_encoder["default"]
    prefix = prefix_of(adapter)
    if hidden:
        made_of = prefix.reparameterization
        assert made_of is not None
        first, _, second = encoder.transform
        pairs = [(made_of.embed.weight, encoder.embedding.weight)]
        pairs += [(made_of.inner.weight, first.weight), (made_of.inner.bias, first.bias)]
        pairs += [(made_of.outer.weight, second.weight), (made_of.outer.bias, second.bias)]
    else:
        assert prefix.P is not None
        pairs = [(prefix.P, encoder.embedding.weight)]
    assert len(pairs) == len(adapter.parameters())
    for mine, other in pairs:
        copy_to(other, mine)
    assert adapter.count() == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    ours, logits = model(batch), theirs(input_ids=batch.inputs).logits
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-11)
    weights = torch.randn_like(ours)
    mine_grads = torch.autograd.grad((ours * weights).sum(), [mine for mine, _ in pairs])
    their_grads = torch.autograd.grad((logits * weights).sum(), [other for _, other in pairs])
    note(ours, logits, mine_grads, their_grads)
    for a, b in zip(mine_grads, their_grads, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_peft_uses_no_mlp_by_default_and_its_zero_start_is_not_the_base_model() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, init_weights="zero")
    assert not config.prefix_projection
    model = pretrained("decoder").double()
    theirs = peft.get_peft_model(gpt2(model), config).double()
    tokens = model.batch(0).inputs
    assert not torch.allclose(theirs(input_ids=tokens).logits, model(Batch(tokens, tokens)), atol=1e-2)
    attach(model, length=4, hidden=0)
    with torch.no_grad():
        model.get_parameter("stack.prefix.P").zero_()
    assert torch.allclose(theirs(input_ids=tokens).logits, model(Batch(tokens, tokens)), rtol=0, atol=1e-11)


def test_peft_gives_an_encoder_decoder_one_prefix_where_the_paper_has_three() -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=24,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    theirs = peft.get_peft_model(
        transformers.BartForConditionalGeneration(config),
        peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4),
    )
    cache = theirs.get_prompt(3)
    assert [layer.keys.shape[2] for layer in cache.self_attention_cache.layers] == [4, 4]
    assert len(cache.cross_attention_cache.layers) == 0
    tokens = {"input_ids": torch.arange(6)[None], "decoder_input_ids": torch.arange(4)[None]}
    theirs.eval()
    changed, plain = theirs(**tokens), theirs.get_base_model()(**tokens)
    assert torch.equal(changed.encoder_last_hidden_state, plain.encoder_last_hidden_state)
    assert not torch.allclose(changed.logits, plain.logits, atol=1e-3)
    ours = attach(build("encoder-decoder", Size(L=2, L_dec=2)), length=4, hidden=0)
    assert ours.count() == 3 * sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_a_copied_model_keeps_its_own_prefix() -> None:
    model, adapter, batch = tuned()
    other = twin(model)
    before = other(batch)
    randomize(adapter.parameters(), seed=9)
    assert torch.equal(other(batch), before)
