"""LN tuning: what the paper says about it, checked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.reparameterized import lora
from reference_impls.selective.ln_tuning import attach

from .parity import LLAMA_7B, LLAMA_13B, note


@pytest.mark.parametrize(
    ("size", "final_norm", "count"),
    [(LLAMA_7B, False, 262_144), (LLAMA_7B, True, 266_240), (LLAMA_13B, True, 414_720)],
)
def test_norm_counts_of_llama(size: Size, final_norm: bool, count: int) -> None:
    assert attach(build("decoder", size, device="meta"), final_norm=final_norm).count() == count
    total = 7.06e9 if size.L == 32 else 13.3e9  # with the vision encoder
    assert 0.003 < 100 * count / total < 0.0045


def default_variant(size: Size) -> tuple[int, int]:
    """Values trained in the paper's default variant, and of them those outside the norms."""
    model = build("decoder", size, device="meta")
    model.connector = nn.Linear(1024, size.d, device="meta")
    count = attach(model, final_norm=True, also=("embed", "head", "connector")).count()
    return count, count - attach(build("decoder", size, device="meta"), final_norm=True).count()


def whole(size: Size, language_model: int) -> int:
    """All values of the multi-modal model: with CLIP ViT-L/14 at 336 pixels and the connector."""
    return language_model + 303_507_456 + 1024 * size.d + size.d


def test_default_variant_of_the_paper_is_3_78_percent_of_7b() -> None:
    count, rest = default_variant(LLAMA_7B)
    assert count == 266_608_640
    assert rest - (1024 * 4096 + 4096) == 262_144_000  # embeddings and head
    assert round(100 * count / whole(LLAMA_7B, 6_738_415_616), 2) == 3.78


@pytest.mark.parametrize(("rank", "percent"), [(64, 41.9), (32, 26.7)])
def test_41_9_percent_fewer_than_lora_at_13b_belong_to_rank_64(rank: int, percent: float) -> None:
    """The paper names rank 32 for LoRA; its figure follows from shares printed with two digits, at twice that rank.

    LoRA trains the same embeddings, head and connector, and two factors for every linear layer of the blocks.
    """
    count, rest = default_variant(LLAMA_13B)
    total = whole(LLAMA_13B, 13_015_864_320)
    blocks = build("decoder", LLAMA_13B, device="meta").stack
    factors = lora.attach(blocks, rank=rank, targets=["q", "k", "v", "o", "gate", "up", "down"]).count()
    norms, low_rank = (round(100 * n / (total + extra), 2) for n, extra in ((count, 0), (rest + factors, factors)))
    assert norms == 2.50
    assert round(100 * (1 - norms / low_rank), 1) == percent


def test_layer_norms_have_twice_as_many_values_as_rms_norms() -> None:
    layer = attach(build("decoder", Size(L=3, norm="layer"))).count()
    assert layer == 2 * attach(build("decoder", Size(L=3, norm="rms"))).count() == 3 * 2 * 2 * 32


def test_norms_of_the_blocks_are_trained_and_the_final_norm_on_request() -> None:
    inside = list(attach(pretrained("decoder")).sites())
    assert all("blocks" in name and "norm" in name for name in inside)
    more = list(attach(pretrained("decoder"), final_norm=True).sites())
    assert sorted(set(more) - set(inside)) == ["stack.norm_out.bias", "stack.norm_out.weight"]


@pytest.mark.parametrize(("kind", "outside"), [("decoder", 1), ("encoder", 1), ("encoder-decoder", 2), ("vit", 1)])
def test_every_stack_has_one_norm_outside_its_blocks(kind: str, outside: int) -> None:
    inside = attach(pretrained(kind))
    more = attach(pretrained(kind), final_norm=True).count() - inside.count()
    assert more == outside * 32 * (1 if kind == "encoder-decoder" else 2)


def test_cross_attention_norms_count_as_block_norms() -> None:
    sites = attach(pretrained("encoder-decoder")).sites()
    assert len(sites) == 2 * 2 + 3 * 3


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_output_of_a_norm_is_linear_in_the_strength(norm: str, c: float) -> None:
    model = build("decoder", Size(L=1, norm=norm)).double()
    adapter = attach(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    layer, x = model.stack.blocks[0].norm1, torch.randn(4, 32, dtype=torch.float64)
    full = layer(x)
    adapter.strength = 0.0
    base = layer(x)
    adapter.strength = c
    assert torch.allclose(layer(x), base + c * (full - base), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_scaling_a_gain_is_scaling_the_columns_of_what_reads_it(norm: str) -> None:
    model = build("decoder", Size(L=2, norm=norm)).double()
    twin = copy.deepcopy(model)
    attach(model)
    u = torch.rand(32, dtype=torch.float64) + 0.5
    with torch.no_grad():
        for block, other in zip(model.stack.blocks, twin.stack.blocks, strict=True):
            for layer in (block.norm1, block.norm2):
                for name in [n for n, _ in layer.parametrizations.items()]:
                    tensor: Tensor = layer.parametrizations[name].original
                    layer.parametrizations[name][0].d.copy_(tensor * (u - 1))
            for linear in (other.attention.q, other.attention.k, other.attention.v, other.mlp.up):
                linear.weight.mul_(u)  # W diag(u)
    batch = model.batch(0)
    assert torch.allclose(model(batch), twin(batch), rtol=0, atol=1e-12)


def test_gain_and_bias_zero_silence_the_branch() -> None:
    model = build("decoder", Size(L=1, bias=False)).double()
    adapter = attach(model)
    with torch.no_grad():
        for path, site in adapter.sites().items():
            owner, _, name = path.rpartition(".")
            site.d.copy_(-model.get_submodule(owner).parametrizations[name].original)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    assert torch.equal(model.stack.blocks[0](x), x)


def test_equals_peft_in_outputs_and_gradients_and_peft_takes_the_final_norm() -> None:
    peft = pytest.importorskip("peft")
    theirs = pretrained("decoder").double()
    ours = pretrained("decoder").double()
    config = peft.LNTuningConfig(target_modules=["norm1", "norm2", "norm_out"])
    wrapped = peft.get_peft_model(theirs, config)
    adapter = attach(ours, final_norm=True)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    pairs = []
    with torch.no_grad():
        for path, site in adapter.sites().items():
            module, _, name = path.rpartition(".")
            (match,) = [p for n, p in trained.items() if f".{module}." in n and n.endswith(f".{name}")]
            match.normal_()
            start = pretrained("decoder").double().get_parameter(path)
            site.d.copy_(match - start)
            pairs.append((site.d, match))
    assert sum(p.numel() for p in trained.values()) == adapter.count()
    batch = ours.batch(0)
    assert torch.allclose(ours(batch), wrapped(batch), rtol=0, atol=1e-12)
    ours.loss(batch).backward()
    theirs.loss(batch).backward()
    note(ours(batch), wrapped(batch), [mine.grad for mine, _ in pairs], [other.grad for _, other in pairs])
    for mine, other in pairs:
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_peft_swaps_norms_in_a_merge_which_is_exact_both_ways() -> None:
    peft = pytest.importorskip("peft")
    model = pretrained("decoder")
    batch = model.batch(0)
    base = model(batch)
    wrapped = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm1", "norm2"]))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    adapted = wrapped(batch)
    wrapped.merge_adapter()
    assert torch.equal(wrapped(batch), adapted)
    wrapped.unmerge_adapter()
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(batch), base)


def test_peft_runs_one_set_of_norms_at_a_time() -> None:
    peft = pytest.importorskip("peft")
    model = pretrained("decoder")
    batch = model.batch(0)
    config = peft.LNTuningConfig(target_modules=["norm1", "norm2"])
    wrapped = peft.get_peft_model(model, config)
    wrapped.add_adapter("second", config)
    wrapped.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="more than one adapter"):
        wrapped(batch)


@pytest.mark.parametrize(("dtype", "lost"), [(torch.bfloat16, True), (torch.float32, False)])
def test_half_precision_loses_small_changes_of_gains_near_one(dtype: torch.dtype, lost: bool) -> None:
    model = build("decoder", Size(L=1)).to(dtype)  # gains of 1
    adapter = attach(model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(1e-3)
    gain = model.stack.blocks[0].norm1.weight
    assert torch.equal(gain, torch.ones_like(gain)) == lost


def test_pefts_default_targets_for_llama_include_the_final_norm() -> None:
    peft_utils = pytest.importorskip("peft.utils")
    targets = peft_utils.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING["llama"]
    assert targets == ["input_layernorm", "post_attention_layernorm", "norm"]


def test_a_model_without_norms_and_unknown_modules_are_refused() -> None:
    with pytest.raises(AdapterError, match="no LayerNorm or RMSNorm"):
        attach(pretrained("mlp"), final_norm=True)
    model = pretrained("decoder")
    with pytest.raises(AdapterError, match="no module connector; it has: embed, stack, head"):
        attach(model, also=("connector",))
    assert all(p.requires_grad for p in model.parameters())
