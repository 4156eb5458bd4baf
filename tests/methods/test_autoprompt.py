"""AutoPrompt: what the paper and its code say about it, checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Batch, build, pretrained
from reference_impls.backbones.base import rule
from reference_impls.backbones.encoder import Encoder
from reference_impls.claims.trial import distance
from reference_impls.prompt.autoprompt import AutoPrompt, attach, find_label_words

LABEL_WORDS = [[9, 5, 4], [12, 18, 6], [20, 21, 16], [13, 3, 2]]
"""What the search for label words finds on 128 examples of the downstream task."""
CLASS_OF = rule(2, 22) % 4
"""The class that each of the 22 words speaks for in pretraining."""
TEMPLATES = ["{sentence} [T] [T] [T] [MASK]", "[T] [MASK] {sentence} [T] 8", "7 [T] {sentence} [MASK] [T]"]


def encoder() -> Encoder:
    model = pretrained("encoder").double()
    assert isinstance(model, Encoder)
    return model


def prompted(start: Sequence[int] = (), **keywords: Any) -> tuple[Encoder, AutoPrompt, Batch]:
    """A model in float64 with the label words of its classes, and a batch."""
    model = encoder()
    adapter = attach(model, **{"label_words": LABEL_WORDS, "start": start} | keywords)
    assert isinstance(adapter, AutoPrompt)
    return model, adapter, model.batch(0)


def joined(model: Encoder, count: int = 4, seed: int = 100) -> Batch:
    """Many examples as one batch."""
    batches = [model.batch(seed + i) for i in range(count)]
    seen = [b.visible for b in batches if b.visible is not None]
    return Batch(torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches]), torch.cat(seen))


def by_hand(model: Encoder, batch: Batch, template: str, tokens: Sequence[int]) -> tuple[list[list[int]], Tensor]:
    """Every example written out on its own, without padding; logits over the vocabulary at its mask."""
    assert batch.visible is not None
    texts, logits = [], []
    for row, visible in zip(batch.inputs, batch.visible, strict=True):
        first, *sentence = row[visible].tolist()
        triggers, text, mask = iter(tokens), [first], 0
        for part in template.split():
            if part == "[MASK]":
                mask = len(text)
            text += sentence if part == "{sentence}" else [word_of(part, triggers, model.mask_token)]
        hidden = model.encode(model.embed(torch.tensor([text])), None)
        texts.append(text)
        logits.append(model.lm_head(hidden[0, mask]))
    return texts, torch.stack(logits)


def word_of(part: str, triggers: Any, mask: int) -> int:
    return mask if part == "[MASK]" else next(triggers) if part == "[T]" else int(part)


def set_tokens(adapter: AutoPrompt, tokens: Sequence[int]) -> None:
    adapter.triggers.tokens.copy_(torch.tensor(list(tokens)))


@torch.no_grad()
def log_probabilities(adapter: AutoPrompt, batch: Batch, prompts: Iterable[tuple[int, ...]]) -> Tensor:
    """What each prompt makes of the batch, (prompts, B, C)."""
    kept, found = adapter.triggers.tokens.clone(), []
    for tokens in prompts:
        set_tokens(adapter, tokens)
        found.append(adapter.model(batch))
    adapter.triggers.tokens.copy_(kept)
    return torch.stack(found)


def losses(adapter: AutoPrompt, batch: Batch, prompts: Iterable[tuple[int, ...]]) -> Tensor:
    """-log p(y | x) under each prompt, the mean over the batch."""
    return mean_loss(log_probabilities(adapter, batch, prompts), batch)


def mean_loss(logp: Tensor, batch: Batch) -> Tensor:
    """(prompts, B, C) -> (prompts,)."""
    return -logp[:, torch.arange(len(batch.targets)), batch.targets].mean(dim=1)


ALONE = [(word,) for word in range(24)]
"""Every prompt of one trigger."""
PAIRS = list(itertools.product(range(24), repeat=2))
"""Every prompt of two triggers."""


def test_nothing_is_trained_and_no_bit_of_the_model_changes() -> None:
    model = encoder()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    adapter = attach(model, batches=[model.batch(900)])
    adapter.fit(model.batch(100 + i) for i in range(10))
    assert adapter.count() == 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())


def test_the_learned_part_is_t_integers_and_the_label_words() -> None:
    _, adapter, _ = prompted()
    state = adapter.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {"triggers.tokens": (3,), "triggers.words": (4, 3)}
    assert all(t.dtype == torch.long for t in state.values())


def test_triggers_start_as_masks_or_as_a_prompt_written_by_hand() -> None:
    model, adapter, _ = prompted()
    assert adapter.triggers.tokens.tolist() == [model.mask_token] * 3
    assert prompted(start=[4, 0, 7])[1].triggers.tokens.tolist() == [4, 0, 7]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_model_reads_what_the_template_says(template: str) -> None:
    tokens = [1, 2, 3][: template.count("[T]")]
    model, adapter, batch = prompted(template=template, start=tokens)
    read: list[Tensor] = []
    handle = model.embed.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    logp = model(batch)
    handle.remove()
    adapter.detach()
    texts, logits = by_hand(model, batch, template, tokens)
    assert [row[: len(text)].tolist() for row, text in zip(read[0], texts, strict=True)] == texts
    words = logits.log_softmax(dim=-1)[:, LABEL_WORDS]
    assert torch.allclose(logp, words.exp().sum(dim=-1).log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("template", TEMPLATES)
def test_padding_does_not_change_the_output(template: str) -> None:
    model, _, batch = prompted(template=template)
    assert batch.visible is not None
    more = torch.full((len(batch.inputs), 3), 11)
    longer = Batch(
        torch.cat([torch.where(batch.visible, batch.inputs, 7), more], dim=1),
        batch.targets,
        torch.cat([batch.visible, torch.zeros_like(more, dtype=torch.bool)], dim=1),
    )
    assert torch.allclose(model(longer), model(batch), rtol=0, atol=1e-12)


def test_with_one_word_a_class_the_loss_is_that_of_filling_the_mask() -> None:
    words = [[0], [18], [20], [3]]
    model, adapter, batch = prompted(label_words=words, start=[1, 2, 3])
    mine = adapter.loss(batch)
    adapter.detach()
    _, logits = by_hand(model, batch, TEMPLATES[0], [1, 2, 3])
    expected = F.cross_entropy(logits, torch.tensor(words)[batch.targets, 0])
    assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


def test_probabilities_of_a_class_add_up_over_its_words_and_not_to_one_over_the_classes() -> None:
    model, adapter, batch = prompted()
    p = model(batch).exp()
    assert p.sum(dim=1).max() < 0.999
    alone = 0.0
    for column in range(3):
        adapter.triggers.words.copy_(torch.tensor([[words[column]] * 3 for words in LABEL_WORDS]))
        alone = alone + model(batch).exp() / 3
    assert torch.allclose(p, torch.as_tensor(alone), rtol=0, atol=1e-12)
    adapter.detach()
    _, logits = by_hand(model, batch, TEMPLATES[0], [model.mask_token] * 3)
    averaged = logits[:, LABEL_WORDS].mean(dim=-1).softmax(dim=-1)  # as PET has it
    assert distance(averaged.detach(), p.detach()) > 0.1


def test_masks_of_sentences_elsewhere_are_filled_as_before() -> None:
    model, adapter, batch = prompted()
    model(batch)
    assert adapter.triggers.places is adapter.triggers.state is None
    assert torch.equal(model.fill(batch).detach(), encoder().fill(batch).detach())


def test_the_gradient_is_that_of_moving_the_triggers_embedding_in_every_example() -> None:
    model, adapter, batch = prompted(start=[1, 2, 3])
    found = adapter.gradient([batch])
    assert found.shape == (3, 32)
    direction = torch.randn(3, 32, dtype=torch.float64)

    def moved(step: float) -> float:
        def move(_: Any, __: Any, output: Tensor) -> Tensor:
            assert adapter.triggers.places is not None
            places = adapter.triggers.places[:, adapter.triggers.at]
            change = torch.zeros_like(output)
            for row, at in enumerate(places):
                change[row, at] = step * direction
            return output + change

        handle = model.embed.register_forward_hook(move)
        loss = adapter.loss(batch).item()
        handle.remove()
        return loss

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-7)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_of_several_batches_are_averaged() -> None:
    model, adapter, _ = prompted(start=[1, 2, 3])
    one, two = model.batch(1), model.batch(2)
    mean = (adapter.gradient([one]) + adapter.gradient([two])) / 2
    assert torch.allclose(adapter.gradient([one, two]), mean, rtol=0, atol=1e-15)


def test_an_exchange_of_close_words_changes_the_loss_as_the_first_order_says() -> None:
    model, adapter, batch = prompted(start=[1, 2, 3])
    table = model.embed.weight
    with torch.no_grad():
        table[4] = table[1] + 1e-4 * torch.randn(32, dtype=torch.float64)
    before, g = adapter.loss(batch).item(), adapter.gradient([batch])[0]
    set_tokens(adapter, [4, 2, 3])
    change = adapter.loss(batch).item() - before
    estimate = float((table[4] - table[1]) @ g)
    assert abs(change) > 1e-8
    assert estimate == pytest.approx(change, rel=1e-2)


def test_what_the_present_word_scores_does_not_change_the_order_of_candidates() -> None:
    model, adapter, batch = prompted(start=[1, 2, 3], candidates=24)
    g = adapter.gradient([batch])[0]
    estimates = (model.embed.weight - model.embed.weight[1]) @ g
    assert torch.equal(adapter.rank(g), estimates.argsort())


def test_candidates_of_first_order_are_better_than_chance() -> None:
    _, adapter, batch = prompted(template="{sentence} [T] [MASK]", start=[1], candidates=24)
    ranked = adapter.rank(adapter.gradient([batch])[0])
    true = losses(adapter, batch, ALONE)[ranked]
    assert true[:8].mean() < true[-8:].mean() - 0.005


def test_with_every_word_a_candidate_a_step_is_an_exhaustive_search() -> None:
    model, adapter, batch = prompted(template="{sentence} [T] [MASK]", candidates=24)
    assert adapter.step([batch], [model.batch(1)])
    assert adapter.triggers.tokens.item() == losses(adapter, model.batch(1), ALONE).argmin()


def test_searched_to_the_end_no_single_exchange_is_better() -> None:
    _, adapter, batch = prompted(template="[T] {sentence} [T] [MASK]", candidates=24)
    adapter.fit([batch] * 30)
    one, two = adapter.triggers.tokens.tolist()
    neighbors = [(word, two) for word in range(24)] + [(one, word) for word in range(24)]
    assert losses(adapter, batch, [(one, two)]) <= losses(adapter, batch, neighbors).min()


def test_a_step_never_makes_the_batches_it_tries_on_worse_and_keeps_a_prompt_that_is_best() -> None:
    model, adapter, _ = prompted(start=[1, 2, 3], candidates=5)
    for seed in range(12):
        batch, fresh = model.batch(2 * seed), model.batch(2 * seed + 1)
        before, kept = adapter.score([fresh]), adapter.triggers.tokens.clone()
        accepted = adapter.step([batch], [fresh])
        assert accepted == (adapter.score([fresh]) > before)
        assert int((adapter.triggers.tokens != kept).sum()) == int(accepted)


def test_candidates_and_the_present_prompt_are_tried_on_the_same_fresh_batches() -> None:
    model, adapter, _ = prompted(candidates=4, accumulation=2)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].targets), prepend=True)
    batches = [model.batch(i) for i in range(4)]
    adapter.fit(batches)
    order = [next(i for i, b in enumerate(batches) if b.targets is t) for t in seen]
    assert order == [0, 1] + [2, 3] * (1 + 4) + [2, 3]


def test_every_position_gets_its_turn() -> None:
    model, adapter, batch = prompted(candidates=1)
    turns = [0, 0, 0]
    for seed in range(60):
        set_tokens(adapter, [1, 2, 3])
        if adapter.step([batch], [model.batch(seed)]):
            turns[adapter.triggers.tokens.ne(torch.tensor([1, 2, 3])).tolist().index(True)] += 1
    assert min(turns) > 0


def test_the_prompt_that_did_best_on_dev_batches_is_kept() -> None:
    model = encoder()
    dev = [model.batch(900 + i) for i in range(2)]
    adapter = attach(model, label_words=LABEL_WORDS, start=[1, 2, 3], dev=dev)
    assert isinstance(adapter, AutoPrompt)
    visited = {tuple(adapter.triggers.tokens.tolist()): adapter.score(dev)}
    step = adapter.step

    def remembered(batches: Sequence[Batch], fresh: Sequence[Batch]) -> bool:
        accepted = step(batches, fresh)
        visited[tuple(adapter.triggers.tokens.tolist())] = adapter.score(dev)
        return accepted

    adapter.step = remembered  # type: ignore[method-assign]
    adapter.fit(model.batch(100 + i) for i in range(30))
    kept = tuple(adapter.triggers.tokens.tolist())
    assert len(visited) > 3
    assert kept != list(visited)[-1]
    assert visited[kept] == max(visited.values())


def test_without_dev_batches_the_last_prompt_stays() -> None:
    model, adapter, batch = prompted(candidates=24)
    adapter.fit([batch] * 2)
    assert adapter.triggers.tokens.tolist() != [model.mask_token] * 3


def test_excluded_words_are_never_tried_however_much_they_promise() -> None:
    _, free, batch = prompted(start=[1, 2, 3], candidates=24)
    g = free.gradient([batch])[0]
    promising = free.rank(g)[:20].tolist()
    _, adapter, _ = prompted(start=[1, 2, 3], candidates=24, excluded=promising)
    assert adapter.rank(g).tolist() == free.rank(g)[20:].tolist()


def test_accuracy_as_the_metric_counts_what_is_right() -> None:
    model, adapter, batch = prompted(metric="accuracy")
    right = [int(p.argmax()) == int(y) for p, y in zip(model(batch), batch.targets, strict=True)]
    assert adapter.score([batch]) == pytest.approx(sum(right) / len(right))
    assert adapter.score([batch], "probability") == pytest.approx(-adapter.loss(batch).item())


def test_label_words_found_are_words_of_their_class() -> None:
    model = encoder()
    adapter = attach(model, batches=[model.batch(900 + i) for i in range(4)])
    words = adapter.state_dict()["triggers.words"]
    assert words.tolist() == LABEL_WORDS
    assert all(CLASS_OF[word] == y for y, row in enumerate(words.tolist()) for word in row)
    held_out = joined(model, seed=50_000)
    assert (model(held_out).argmax(dim=-1) == held_out.targets).double().mean() > 0.6


def test_a_classifier_fitted_to_the_end_no_longer_points_at_words() -> None:
    model, _, _ = prompted()
    batches = [model.batch(900 + i) for i in range(4)]

    def right(steps: int) -> int:
        words = find_label_words(model, batches, 3, steps)
        return sum(int(CLASS_OF[word]) == y for y, row in enumerate(words.tolist()) for word in row)

    assert right(300) == 12
    assert right(3000) < 9


def test_label_words_are_never_special_tokens() -> None:
    model, _, _ = prompted()
    words = find_label_words(model, [model.batch(900)], model.size.V - 2)
    for row in words.tolist():
        assert sorted(row) == list(range(22))


@cache
def every_pair() -> tuple[Batch, Tensor]:
    """Held-out examples, and what every prompt of two triggers makes of them."""
    model, adapter, _ = prompted(template="{sentence} [T] [T] [MASK]")
    held_out = joined(model, seed=50_000)
    return held_out, log_probabilities(adapter, held_out, PAIRS)


def test_the_search_comes_close_to_the_best_of_all_prompts_on_examples_it_has_not_seen() -> None:
    reached = []
    for seed in range(2):
        model, adapter, _ = prompted(template="{sentence} [T] [T] [MASK]", accumulation=2)
        torch.manual_seed(seed)
        adapter.fit(model.batch(100 + i) for i in range(48))
        reached.append(PAIRS.index(tuple(adapter.triggers.tokens.tolist())))
    held_out, logp = every_pair()
    loss = mean_loss(logp, held_out)
    start = loss[PAIRS.index((23, 23))]
    assert ((start - loss[reached]) / (start - loss.min())).mean() > 0.5


def test_no_prompt_of_two_words_beats_the_classification_head_it_does_without() -> None:
    held_out, logp = every_pair()
    best = mean_loss(logp.log_softmax(dim=-1), held_out).min()
    assert best > encoder().loss(held_out) + 0.05


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"template": "{sentence} [MASK]"}, r"needs \{sentence\} and \[MASK\] once each, \[T\] at least once"),
        ({"template": "{sentence} [T] [MASK] [MASK]"}, "once each"),
        ({"template": "[T] [MASK]"}, "once each"),
        ({"template": "{sentence} it was [T] [MASK]"}, "other words are given by their token ids, 0 to 23"),
        ({"template": "{sentence} 24 [T] [MASK]"}, "0 to 23"),
        ({"start": [1, 2]}, r"start \[1, 2\]: needs 3 token ids, 0 to 23"),
        ({"start": [1, 2, 24]}, "needs 3 token ids, 0 to 23"),
        ({"label_words": ()}, "label_words: give them, or batches on which to find them"),
        ({"label_words": [[1], [2]]}, "equally many words, one or more, for each of 4 classes"),
        ({"label_words": [[1], [2], [3], [4, 5]]}, "equally many words"),
        ({"label_words": [[], [], [], []]}, "one or more"),
        ({"words": 23}, "words 23, .* words at most 22"),
        ({"candidates": 0}, "candidates 0, .* must be at least 1"),
        ({"accumulation": 0}, "accumulation 0: each must be at least 1"),
        ({"metric": "loss"}, "metric is 'loss'; allowed: probability, accuracy"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    model = build("encoder")
    with pytest.raises(AdapterError, match=message):
        attach(model, **{"label_words": LABEL_WORDS} | keywords)
    assert all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_other_models_fill_no_masks() -> None:
    with pytest.raises(AdapterError, match="Decoder fills no masks: AutoPrompt needs the encoder"):
        attach(build("decoder"), label_words=LABEL_WORDS)
