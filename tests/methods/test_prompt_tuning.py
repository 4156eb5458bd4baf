"""Prompt tuning: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.claims.training import held_out_loss
from reference_impls.claims.trial import distance, like
from reference_impls.prompt.prompt_tuning import PromptTuning, attach

from .parity import copy_to, note, randomize

KINDS = ["encoder-decoder", "decoder", "encoder"]
STACK = {"encoder-decoder": "encoder", "decoder": "stack", "encoder": "stack"}


def tuned(kind: str, length: int = 4, spread: float = 0.5) -> tuple[Backbone, PromptTuning, Batch]:
    """A model in float64 with a prompt away from its start, and a batch."""
    model = pretrained(kind).double()
    adapter = attach(model, length=length)
    assert isinstance(adapter, PromptTuning)
    randomize(adapter.parameters(), spread)
    return model, adapter, like(model, model.batch(0))


def set_prompt(model: Backbone, value: Tensor) -> None:
    copy_to(model.get_parameter("prompt.P"), value)


def table_of(model: Backbone) -> Tensor:
    return model.get_parameter("embed.weight").detach()


def t5(d: int, layers: int, heads: int, hidden: int) -> Size:
    return Size(
        L=layers,
        L_dec=layers,
        d=d,
        f=hidden,
        heads=heads,
        head_dim=64,
        V=32128,
        positions=0,
        gated=True,
        norm="rms",
        bias=False,
    )


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (t5(512, 8, 6, 1024), 51_200),
        (t5(768, 12, 12, 2048), 76_800),
        (t5(1024, 24, 16, 2816), 102_400),
        (t5(2048, 24, 32, 5120), 204_800),
        (t5(4096, 24, 64, 10240), 409_600),
    ],
)
def test_counts_of_t5(size: Size, count: int) -> None:
    model = build("encoder-decoder", size, device="meta")
    whole = sum(p.numel() for p in model.parameters())
    assert attach(model).count() == count
    if size.d == 4096:
        assert whole > 1e10
        assert count / whole < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_real_tokens_do_what_these_tokens_do_in_front(kind: str) -> None:
    model, adapter, batch = tuned(kind)
    words = torch.tensor([3, 17, 5, 9])
    set_prompt(model, table_of(model)[words])
    mine = model(batch)
    adapter.detach()
    visible = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.visible is None else batch.visible
    front = words.expand(len(batch.inputs), -1)
    longer = torch.cat([front, batch.inputs], dim=1)
    seen = torch.cat([torch.ones_like(front, dtype=torch.bool), visible], dim=1)
    if kind == "encoder-decoder":
        expected = model(Batch(longer, batch.targets, seen))
    elif kind == "decoder":
        expected = model(Batch(longer, batch.targets, seen))[:, len(words) :]
    else:
        assert isinstance(model.pooler, nn.Linear)
        assert isinstance(model.head, nn.Linear)
        hidden, _ = model.get_submodule("stack")(model.get_submodule("embed")(longer), seen)
        expected = model.head(torch.tanh(model.pooler(hidden[:, len(words)])))
    assert torch.allclose(mine, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prompt_of_length_zero_is_the_frozen_model(kind: str) -> None:
    model = pretrained(kind).double()
    batch = like(model, model.batch(0))
    before = model(batch)
    assert attach(model, length=0).count() == 0
    assert torch.equal(model(batch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_prompt_and_leaves_every_weight_of_the_model(kind: str) -> None:
    model = pretrained(kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    adapter = attach(model, length=4)
    start = model.get_parameter("prompt.P").clone()
    adapter.fit([model.batch(60 + i) for i in range(5)])
    assert [name for name, _ in adapter.named_parameters()] == ["prompt.P"]
    assert (model.get_parameter("prompt.P") - start).abs().max() > 0.2
    after = model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "prompt.P")


def test_the_decoder_is_untouched_and_sees_the_encoded_prompt() -> None:
    model, _, batch = tuned("encoder-decoder")
    calls: list[tuple[Any, ...]] = []
    model.get_submodule("decoder").register_forward_pre_hook(lambda _, args: calls.append(args))
    model(batch)
    ((x, visible, memory, memory_visible),) = calls
    rows, length = batch.targets.shape
    assert x.shape[:2] == visible.shape == (rows, length)
    assert memory.shape[:2] == memory_visible.shape == (rows, 4 + batch.inputs.shape[1])
    assert memory_visible.all()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_prompt_positions_take_no_part_in_the_loss(kind: str) -> None:
    model, adapter, batch = tuned(kind)
    logits = model(batch)
    assert logits.shape[:-1] == batch.targets.shape
    expected = F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten())
    assert torch.allclose(adapter.loss(batch), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_padding_does_not_change_the_output(kind: str) -> None:
    model, _, batch = tuned(kind)
    visible = batch.visible
    if visible is None:
        visible = torch.arange(batch.inputs.shape[1]) < torch.randint(3, 6, (len(batch.inputs), 1))
    short = model(Batch(batch.inputs, batch.targets, visible))
    garbage = torch.where(visible, batch.inputs, 7)
    more = torch.full((len(garbage), 3), 11)
    longer = Batch(
        torch.cat([garbage, more], dim=1),
        batch.targets,
        torch.cat([visible, torch.zeros_like(more, dtype=torch.bool)], dim=1),
    )
    assert torch.allclose(model(longer), short, rtol=0, atol=1e-12)


def test_order_matters_since_prompt_positions_are_positions() -> None:
    for kind in KINDS:
        model, _, batch = tuned(kind)
        before = model(batch).detach()
        set_prompt(model, model.get_parameter("prompt.P").detach().flip(0))
        assert distance(model(batch).detach(), before) > 1e-3


def test_vocabulary_start_draws_frequent_tokens_without_replacement() -> None:
    model = build("encoder-decoder", t5(16, 1, 2, 32))
    attach(model, length=300, population=400)
    rows = model.get_parameter("prompt.P").detach()
    tokens = [int(index) for index in torch.cdist(rows, table_of(model)[:2000]).argmin(dim=1)]
    assert torch.equal(rows, table_of(model)[tokens])
    assert max(tokens) < 400
    assert max(tokens) > 300
    assert len(set(tokens)) == 300


def test_a_prompt_longer_than_the_population_repeats_tokens() -> None:
    model = pretrained("encoder-decoder")
    attach(model, length=50, population=10)
    rows = model.get_parameter("prompt.P").detach()
    where = (rows[:, None] == table_of(model)[None, :10]).all(dim=-1)
    assert where.sum(dim=1).eq(1).all()
    assert where.any(dim=0).sum() > 5


def test_label_start_is_the_mean_of_a_labels_pieces_with_frequent_tokens_behind() -> None:
    model = pretrained("encoder-decoder").double()
    attach(model, length=5, init="labels", labels=[[4], [7, 9, 2]], population=6)
    rows, table = model.get_parameter("prompt.P").detach(), table_of(model)
    assert torch.equal(rows[0], table[4])
    assert torch.allclose(rows[1], (table[7] + table[9] + table[2]) / 3, rtol=0, atol=1e-15)
    assert (rows[2:, None] == table[None, :6]).all(dim=-1).any(dim=-1).all()


def test_labels_that_find_no_room_are_left_out() -> None:
    model = pretrained("encoder-decoder")
    attach(model, length=1, init="labels", labels=[[4], [7]])
    assert torch.equal(model.get_parameter("prompt.P")[0], table_of(model)[4])


def test_the_prompt_starts_as_a_copy_of_the_embeddings() -> None:
    model, adapter, _ = tuned("decoder")
    adapter.detach()
    assert torch.equal(table_of(model), table_of(pretrained("decoder").double()))


def test_uniform_start_lies_within_a_half_on_both_sides_of_zero() -> None:
    model = build("encoder-decoder", t5(512, 1, 2, 32))
    attach(model, init="uniform")
    P = model.get_parameter("prompt.P").detach()
    assert -0.5 <= P.min() < -0.499
    assert 0.499 < P.max() <= 0.5
    assert abs(P.mean()) < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_zeros_is_not_the_frozen_model(kind: str) -> None:
    model, adapter, batch = tuned(kind)
    adapter.strength = 0.0
    assert distance(model(batch).detach(), pretrained(kind).double()(batch).detach()) > 1e-3


def test_rms_norm_hides_the_scale_of_a_prompt_from_the_first_attention() -> None:
    model, adapter, batch = tuned("encoder-decoder")
    seen: list[Tensor] = []
    model.get_submodule("encoder.blocks.0.norm1").register_forward_hook(lambda _, __, out: seen.append(out))
    once = model(batch).detach()
    adapter.strength = 3.0
    thrice = model(batch).detach()
    assert torch.allclose(seen[0], seen[1], rtol=0, atol=1e-5)
    assert distance(thrice, once) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_votes_as_its_members_one_by_one(kind: str) -> None:
    model, adapter, batch = tuned(kind)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0].inputs)))
    prompts = [torch.randn(4, model.size.d, dtype=torch.float64) for _ in range(4)]
    voted = adapter.vote(batch, prompts)
    assert calls == [4 * len(batch.inputs)]
    kept = model.get_parameter("prompt.P").detach().clone()
    each = []
    for prompt in prompts:
        set_prompt(model, prompt)
        each.append(model(batch).argmax(dim=-1))
    counts = F.one_hot(torch.stack(each)).sum(dim=0)
    assert torch.equal(voted, counts.argmax(dim=-1))
    assert any(not torch.equal(voted, one) for one in each)
    set_prompt(model, kept)
    assert torch.equal(adapter.vote(batch, [kept]), model(batch).argmax(dim=-1))


def test_an_ensemble_of_other_shapes_is_refused() -> None:
    _, adapter, batch = tuned("decoder")
    for prompts in ([], [torch.zeros(3, 32)]):
        with pytest.raises(AdapterError, match=r"needs one or more tensors of shape \(4, 32\)"):
            adapter.vote(batch, prompts)


def test_a_single_vector_learns_but_in_large_steps_alone() -> None:
    frozen = held_out_loss(pretrained("encoder-decoder"))
    reached = {}
    for rate in (1e-3, 1e-1):
        model = pretrained("encoder-decoder")
        torch.manual_seed(0)
        attach(model, length=1).fit((model.batch(100 + i) for i in range(200)), learning_rate=rate)
        reached[rate] = held_out_loss(model)
    assert reached[1e-1] < frozen - 0.15
    assert reached[1e-3] > frozen


class Library(nn.Module):
    """A backbone behind the interface through which peft speaks to a transformer."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.model = model
        size = model.size
        self.config = transformers.PretrainedConfig(
            vocab_size=size.V,
            hidden_size=size.d,
            num_hidden_layers=size.L,
            num_attention_heads=size.heads,
        )
        self.device = torch.device("cpu")
        self.prepare_inputs_for_generation = self._prepare_encoder_decoder_kwargs_for_generation = None

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Loss and logits, as the library's models give them."""
        model, seen = self.model, attention_mask.bool()
        if model.kind == "decoder":
            hidden, _ = model.get_submodule("stack")(inputs_embeds, seen)
        else:
            memory, seen = model.get_submodule("encoder")(inputs_embeds, seen)
            previous = model.shift_right(labels)  # type: ignore[operator]
            embedded = model.get_submodule("embed")(previous)
            hidden, _ = model.get_submodule("decoder")(embedded, torch.ones_like(previous).bool(), memory, seen)
        logits = model.get_submodule("head")(hidden)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def in_library(kind: str, task: str, length: int = 4) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=length)
    return peft.get_peft_model(Library(pretrained(kind).double()), config).double()


@pytest.mark.parametrize(("kind", "task"), [("decoder", "CAUSAL_LM"), ("encoder-decoder", "SEQ_2_SEQ_LM")])
def test_the_whole_model_equals_peft(kind: str, task: str) -> None:
    model, adapter, batch = tuned(kind)
    theirs = in_library(kind, task)
    rows, P = theirs.prompt_encoder["default"].embedding.weight, model.get_parameter("prompt.P")
    with torch.no_grad():
        rows[:4] = P
    visible = torch.arange(batch.inputs.shape[1]) < torch.randint(4, 7, (len(batch.inputs), 1))
    batch = Batch(batch.inputs, batch.targets, visible)
    loss, logits = theirs(input_ids=batch.inputs, attention_mask=visible, labels=batch.targets)
    mine = adapter.loss(batch)
    torch.testing.assert_close(model(batch), logits[:, -batch.targets.shape[1] :], rtol=0, atol=1e-12)
    torch.testing.assert_close(mine, loss, rtol=0, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(mine, [P]), torch.autograd.grad(loss, [rows])
    note(mine, loss, [a], [b[:4]])
    assert a.abs().max() > 1e-3
    torch.testing.assert_close(a, b[:4], rtol=0, atol=1e-12)


def test_half_of_what_peft_trains_in_an_encoder_decoder_never_gets_a_gradient() -> None:
    theirs = in_library("encoder-decoder", "SEQ_2_SEQ_LM")
    (rows,) = (p for p in theirs.parameters() if p.requires_grad)
    assert rows.shape == (8, 32)
    batch = theirs.get_base_model().model.batch(0)
    visible = torch.ones_like(batch.inputs)
    theirs(input_ids=batch.inputs, attention_mask=visible, labels=batch.targets)[0].backward()
    assert rows.grad[:4].abs().min() > 0
    assert not rows.grad[4:].any()


def test_peft_starts_from_a_gaussian_far_outside_the_papers_range() -> None:
    torch.manual_seed(0)
    rows = in_library("decoder", "CAUSAL_LM", 50).prompt_encoder["default"].embedding.weight
    assert rows.std().item() == pytest.approx(1.0, rel=0.05)
    assert (rows.abs() > 0.5).float().mean() > 0.5


def test_peft_lets_bert_classify_by_the_first_prompt() -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=4
    )
    theirs = peft.get_peft_model(
        transformers.BertForSequenceClassification(config),
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
    ).eval()
    bert, hidden = theirs.get_base_model(), []
    bert.bert.encoder.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
    tokens = torch.arange(10).reshape(2, 5)
    logits = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    assert hidden[0].shape[1] == 4 + 5
    dense = bert.bert.pooler.dense

    def read(place: int) -> Tensor:
        logits: Tensor = bert.classifier(torch.tanh(dense(hidden[0][:, place])))
        return logits

    assert torch.allclose(logits, read(0), atol=1e-6)
    assert not torch.allclose(logits, read(4), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("decoder", {"length": -1}, "length is -1, population 5000"),
        ("decoder", {"population": 0}, "population 0; they must be at least 0 and 1"),
        ("decoder", {"init": "random"}, "init is 'random'; allowed: vocabulary, labels, uniform"),
        ("decoder", {"length": 4, "init": "labels"}, "one or more each"),
        ("decoder", {"length": 4, "labels": [[1]]}, 'go with init="labels"'),
        ("decoder", {"length": 4, "init": "labels", "labels": [[1], []]}, "one or more each"),
        ("decoder", {"length": 64}, "length 64 leaves no room for text: the model has 64 positions"),
        ("vit", {}, "VisionTransformer embeds no tokens"),
        ("mlp", {}, "MLP embeds no tokens"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = build(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_pre_hooks for m in model.modules())
