"""Mix-of-Show: what the paper and its code say about the learning of one concept, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Batch, build, pretrained
from reference_impls.backbones.unet import UNet
from reference_impls.claims.removal import differences
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.mix_of_show import EDLoRA, attach

from .parity import randomize
from .refused import assert_refused
from .stable_diffusion import stable_diffusion_15

CROSS = ["contract.block.cross", "bottom.block.cross", "expand.block.cross"]
LAYERS = len(CROSS)
V = 12


def unet() -> UNet:
    model = pretrained("unet").double()
    assert isinstance(model, UNet)
    return model


def batch_of(model: UNet, count: int = 4) -> Batch:
    return model.batch(0, count=count).to(dtype=torch.float64)


def concept(seed: int = 3, **keywords: Any) -> tuple[UNet, EDLoRA]:
    """A small U-Net with one concept, all that is learned moved."""
    model = unet()
    adapter = attach(model, **{"class_word": 3, **keywords})
    randomize(adapter.parameters(), 0.2, seed)
    return model, adapter


def heard(model: UNet, batch: Batch) -> list[Tensor]:
    """What the keys of every cross-attention are computed from."""
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(f"{path}.k").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for path in CROSS
    ]
    model(batch)
    for handle in handles:
        handle.remove()
    return seen


def test_counts_on_stable_diffusion_15() -> None:
    adapter = attach(stable_diffusion_15())
    sizes = {name: p.numel() for name, p in adapter.named_parameters()}
    assert sizes["text.embed.new"] == 2 * 16 * 768 == 24_576
    assert sum(n for name, n in sizes.items() if name.startswith("text.blocks")) == 294_912
    assert sum(n for name, n in sizes.items() if name.startswith("blocks")) == 797_184
    assert adapter.count() == 1_116_672


def test_words_start_alike_for_all_layers_at_random_and_from_a_word_for_the_class() -> None:
    model = unet()
    new = attach(model, class_word=5, spread=0.5).words.new
    assert new.shape == (2, LAYERS, 32)
    assert torch.equal(new, new[:, :1].expand_as(new))
    assert torch.equal(new[1, 0], model.get_parameter("text.embed.base.weight")[5])
    assert new[0, 0].std().item() == pytest.approx(0.5, rel=0.4)
    new = attach(unet()).words.new
    assert new[:, 0].std(dim=1).tolist() == pytest.approx([0.013, 0.013], rel=0.4)
    assert not torch.equal(new[0], new[1])


def test_prompts_without_the_new_words_start_as_the_base_model_and_with_them_do_not() -> None:
    model = unet()
    batch = batch_of(model)
    before = model(batch)
    adapter = attach(model, class_word=3)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-14)
    assert not torch.allclose(model(adapter.bind(batch)), before, atol=1e-2)


def test_each_cross_attention_reads_the_encoding_made_with_its_own_words() -> None:
    model, adapter = concept()
    tokens = torch.tensor([[0, V, V + 1], [V + 1, 4, V]])
    batch = batch_of(model, 2)
    seen = heard(model, Batch(batch.inputs, batch.targets, text=tokens, time=batch.time))
    table = model.get_parameter("text.embed.base.weight")
    for layer, memory in enumerate(seen):
        rows = torch.cat([table, adapter.words.new[:, layer]])
        assert torch.allclose(memory, model.text.encode(rows[tokens]), rtol=0, atol=1e-12)  # down, middle, up


def test_a_word_changed_for_one_layer_is_heard_by_that_one_alone() -> None:
    model, adapter = concept()
    batch = adapter.bind(batch_of(model))
    before = heard(model, batch)
    with torch.no_grad():
        adapter.words.new[:, 1] += 1
    assert [torch.equal(a, b) for a, b in zip(before, heard(model, batch), strict=True)] == [True, False, True]


def test_text_encoder_is_run_once_per_cross_attention() -> None:
    model, _ = concept()
    shapes = []
    model.text.stack.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    model(batch_of(model, 5))
    assert shapes == [(5 * LAYERS, 3, 32)]


def test_captions_name_the_concept_first() -> None:
    model, adapter = concept()
    batch = batch_of(model)
    assert batch.text is not None
    bound = adapter.bind(batch).text
    assert bound is not None
    assert bound[:, :2].tolist() == [[V, V + 1]] * 4
    assert torch.equal(bound[:, 2:], batch.text[:, 1:])


@pytest.mark.parametrize("rank", [1, 4])
def test_alpha_is_not_divided_by_the_rank(rank: int) -> None:
    _, adapter = concept(rank=rank, alpha=0.5)
    layers = [site for site in adapter.sites().values() if isinstance(site, LoRALinear)]
    assert len(layers) == 4 * (6 + 1)
    for layer in layers:
        assert torch.allclose(layer.delta_weight(), 0.5 * layer.B @ layer.A, rtol=0, atol=1e-14)


def test_loss_inside_a_mask_is_the_mean_error_there_and_a_hundredth_of_the_attention_outside() -> None:
    model, adapter = concept()
    batch, source = batch_of(model), torch.Generator().manual_seed(1)
    mask = (torch.rand(4, 1, 8, 8, generator=source, dtype=torch.float64) > 0.5).double()
    error = (model(adapter.bind(batch)) - batch.targets).square()
    inside = torch.stack([error[i][:, mask[i, 0] == 1].mean() for i in range(4)]).mean()
    expected = inside + 0.01 * attention_by_hand(model, adapter, batch, mask, full=False)
    assert torch.allclose(adapter.loss(batch, mask), expected, rtol=0, atol=1e-12)
    adapter.full_identity = True
    expected = inside + 0.01 * attention_by_hand(model, adapter, batch, mask, full=True)
    assert torch.allclose(adapter.loss(batch, mask), expected, rtol=0, atol=1e-12)
    assert adapter.maps is None


def attention_by_hand(model: UNet, adapter: EDLoRA, batch: Batch, mask: Tensor, full: bool) -> Tensor:
    """Resolution by resolution, from the queries and keys of its cross-attentions."""
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(f"{path}.{name}").register_forward_hook(
            lambda _, args, out, key=f"{path}.{name}": kept.__setitem__(key, out.unflatten(-1, (4, 8)).transpose(1, 2))
        )
        for path in CROSS
        for name in "qk"
    ]
    model(adapter.bind(batch))
    for handle in handles:
        handle.remove()
    maps = {path: (kept[f"{path}.q"] @ kept[f"{path}.k"].mT / 8**0.5).softmax(-1) for path in CROSS}
    total = mask.new_zeros(())
    small = mask[:, :, ::2, ::2]
    for attention, subject in (
        ((maps[CROSS[0]].mean(1) + maps[CROSS[2]].mean(1)) / 2, mask),
        (maps[CROSS[1]].mean(1), small),
    ):
        rand, kind = (attention[..., i] / attention[..., i].max() for i in (0, 1))
        outside = subject.flatten(1) == 0
        total = total + rand[outside].mean()
        total = total + (F.mse_loss(kind, subject.flatten(1)) if full else kind[outside].mean())
    return total


def test_a_mask_of_the_whole_picture_leaves_the_loss_alone() -> None:
    model, adapter = concept()
    batch = batch_of(model)
    whole = adapter.loss(batch, torch.ones(4, 1, 8, 8, dtype=torch.float64))
    assert torch.allclose(whole, model.loss(adapter.bind(batch)), rtol=0, atol=1e-14)
    assert torch.equal(adapter.loss(batch), model.loss(adapter.bind(batch)))


def test_embeddings_stay_once_their_mean_norm_has_reached_the_limit_and_factors_go_on() -> None:
    model, adapter = concept()
    adapter.norm_limit = adapter.words.new.norm(dim=-1).mean().item() + 0.1
    moved = []
    for step in range(12):
        before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
        adapter.fit([model.batch(step, count=4).to(dtype=torch.float64)], learning_rate=3e-3)
        if step == 0:
            with torch.no_grad():
                adapter.words.new.mul_(1.05)
        moved.append([not torch.equal(p, before[name]) for name, p in adapter.named_parameters()])
        assert all(now for (name, _), now in zip(before.items(), moved[-1], strict=True) if name != "text.embed.new")
    names = [name for name, _ in adapter.named_parameters()]
    words = [row[names.index("text.embed.new")] for row in moved]
    assert words == [True, True] + [False] * 10
    assert adapter.words.new.norm(dim=-1).mean() >= adapter.norm_limit


def test_steps_are_ten_times_as_large_for_embeddings_and_a_tenth_for_the_text_encoder() -> None:
    _, adapter = concept()
    groups = adapter.optimizer(1e-4).param_groups
    assert [(round(g["lr"], 12), len(g["params"])) for g in groups] == [(1e-3, 1), (1e-5, 2 * 4), (1e-4, 2 * 24)]
    assert {g["weight_decay"] for g in groups} == {0.01}


def test_known_words_are_never_handed_to_the_optimizer() -> None:
    model, adapter = concept()
    table = model.get_parameter("text.embed.base.weight")
    given = {id(p) for group in adapter.optimizer(1e-4).param_groups for p in group["params"]}
    assert id(table) not in given
    adapter.loss(batch_of(model)).backward()
    assert table.grad is None


def test_what_needs_several_encodings_of_a_prompt_cannot_be_merged() -> None:
    _, adapter = concept()
    with pytest.raises(AdapterError, match="EDLoRA cannot be merged"):
        adapter.merge()


def test_models_without_a_prompt_are_refused() -> None:
    assert_refused(attach, {}, "no module named cross in Decoder")
    with pytest.raises(AdapterError, match=r"EncoderDecoder has no text\.embed"):
        attach(build("encoder-decoder"))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"class_word": 12}, "class_word is 12; the known words are 0 to 11"),
        ({"targets": ["conv1"]}, "is a Conv2d; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    model = unet()
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert differences(model, unet()) == []
