"""The small models: seeded, honest about their tasks, and free of look-ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reference_impls.backbones import KINDS, SMALL, Batch, Size, build, pretrained
from reference_impls.backbones.base import rule
from reference_impls.backbones.encoder import Encoder
from reference_impls.claims.training import ends


@pytest.mark.parametrize("kind", KINDS)
def test_full_fine_tuning_has_a_gap_to_close(kind: str) -> None:
    before, full = ends(kind)
    assert full < 0.5 * before


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_is_worth_something(kind: str) -> None:
    model, fresh = pretrained(kind), build(kind)
    batch = model.batch(12_345, "pretraining")
    assert model.loss(batch) < 0.5 * fresh.loss(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_depend_on_the_seed_alone(kind: str) -> None:
    model = build(kind)
    torch.manual_seed(1)
    first = model.batch(3)
    torch.manual_seed(2)
    again, other = model.batch(3), model.batch(4)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)


def test_decoder_does_not_look_ahead() -> None:
    model = build("decoder").double()
    batch = model.batch(0)
    changed = batch.inputs.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 20
    with torch.no_grad():
        one, two = model(batch), model(Batch(changed, batch.targets))
    torch.testing.assert_close(one[:, :6], two[:, :6], rtol=0, atol=1e-14)
    assert not torch.allclose(one[:, 6:], two[:, 6:])


def test_encoder_does_not_see_padding() -> None:
    model = build("encoder").double()
    batch = model.batch(0)
    assert batch.visible is not None
    filled = torch.where(batch.visible, batch.inputs, torch.full_like(batch.inputs, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(batch), model(Batch(filled, batch.targets, batch.visible)), rtol=0, atol=1e-13)


def test_real_dimensions_take_no_memory_and_count_right() -> None:
    bert = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
    model = build("encoder", bert, device="meta")
    assert all(p.is_meta for p in model.parameters())
    blocks = sum(p.numel() for p in model.stack.blocks.parameters())  # type: ignore[union-attr]
    assert blocks == 85_054_464  # BERT-base: 12 blocks of 7,087,872


def test_llama_layers_have_no_biases() -> None:
    size = replace(SMALL["decoder"], gated=True, norm="rms", bias=False, positions=0)
    assert not [name for name, _ in build("decoder", size, device="meta").named_parameters() if name.endswith("bias")]


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="decoder, encoder"):
        build("rnn")


def test_the_encoder_fills_masks_with_words_of_the_sentences_class() -> None:
    model = pretrained("encoder")
    assert isinstance(model, Encoder)
    batch, target = model.masked_batch(99_999, count=256), model.batch(99_999, "pretraining", 256, 16).targets
    with torch.no_grad():
        words = model.fill(batch).softmax(-1)[batch.targets >= 0][:, :-2]  # (B, words)
    table = rule(2, words.shape[1])
    by_class = torch.stack([words[:, table % 4 == c].sum(1) for c in range(4)], dim=1)
    assert (by_class.argmax(1) == target).float().mean() > 0.9
