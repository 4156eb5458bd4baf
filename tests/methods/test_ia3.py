"""(IA)^3 and T-Few: what the paper says about them, checked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.additive.ia3 import (
    IA3,
    Choices,
    ScaledInput,
    ScaledLinear,
    ScaledOutput,
    attach,
    length_normalized,
    mean_log_likelihood,
    t_few_loss,
    t_few_rate,
    unlikelihood,
)
from reference_impls.backbones import Size, build, pretrained

from .parity import note

T5 = {"V": 32128, "positions": 0, "gated": True, "norm": "rms", "bias": False, "head_dim": 64}
T0_3B = Size(**T5, L=24, L_dec=24, d=2048, f=5120, heads=32)  # type: ignore[arg-type]
T0_11B = Size(**T5, L=24, L_dec=24, d=4096, f=10240, heads=64)  # type: ignore[arg-type]
TINY = Size(L=2, L_dec=3, d=32, f=128, heads=4, head_dim=8, norm="rms", bias=False, positions=0)
SHAPES = [(12, 12), (12, 8), (8, 12)]


def linear(d_in: int, d_out: int) -> nn.Linear:
    return nn.Linear(d_in, d_out).double()


def drawn(site: ScaledLinear) -> ScaledLinear:
    with torch.no_grad():
        site.l.normal_(1.0, 0.5)
    return site


@pytest.mark.parametrize(("size", "count"), [(T0_3B, 540_672), (T0_11B, 1_081_344), (TINY, 1_152)])
def test_counts_of_encoder_decoders(size: Size, count: int) -> None:
    assert attach(build("encoder-decoder", size, device="meta")).count() == count


def test_11b_takes_the_megabytes_of_the_paper() -> None:
    count = attach(build("encoder-decoder", T0_11B, device="meta")).count()
    assert round(count * 4 / 2**20, 1) == 4.1
    assert round(count * 4 / 1e6, 1) == 4.3


def test_one_value_for_an_output_or_an_input() -> None:
    assert ScaledOutput(linear(12, 8)).l.shape == (8,)
    assert ScaledInput(linear(12, 8)).l.shape == (12,)


def test_vectors_start_at_one() -> None:
    assert all(bool((p == 1).all()) for p in attach(pretrained("encoder-decoder")).parameters())


def test_cross_attention_is_scaled_too() -> None:
    paths = list(attach(pretrained("encoder-decoder")).sites())
    assert len(paths) == 2 * 3 + 3 * 5
    assert "decoder.blocks.0.cross.k" in paths
    assert "encoder.blocks.1.mlp.down" in paths


def test_hidden_activation_is_scaled_behind_the_nonlinearity() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model)
    mlp = model.stack.blocks[0].mlp
    site = drawn(adapter.sites()["stack.blocks.0.mlp.down"])  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    hidden = site.l * torch.nn.functional.gelu(mlp.up(x))
    expected = hidden @ site.base.weight.T + site.base.bias
    assert torch.allclose(mlp(x), expected, rtol=0, atol=1e-12)
    output_scaled = torch.nn.functional.gelu(site.l * mlp.up(x)) @ site.base.weight.T + site.base.bias
    assert not torch.allclose(mlp(x), output_scaled, atol=1e-3)


def test_scaling_the_linear_branch_of_a_gated_network_is_the_same() -> None:
    model = build("decoder", Size(L=1, gated=True, bias=False)).double()
    mlp = model.stack.blocks[0].mlp
    x, l = torch.randn(4, 32, dtype=torch.float64), torch.rand(64, dtype=torch.float64)  # noqa: E741
    official = mlp.down(mlp.act(mlp.gate(x)) * (l * mlp.up(x)))
    adapter = attach(model)
    with torch.no_grad():
        adapter.sites()["stack.blocks.0.mlp.down"].l.copy_(l)  # type: ignore[operator, union-attr]
    assert torch.allclose(mlp(x), official, rtol=0, atol=1e-13)


def test_zero_keys_make_attention_uniform() -> None:
    model = pretrained("encoder-decoder").double()
    adapter = attach(model)
    cross = model.decoder.blocks[0].cross
    with torch.no_grad():
        adapter.sites()["decoder.blocks.0.cross.k"].l.zero_()  # type: ignore[operator, union-attr]
    x, memory = torch.randn(1, 4, 32, dtype=torch.float64), torch.randn(1, 6, 32, dtype=torch.float64)
    out = cross(x, None, memory)
    assert torch.allclose(out, cross.o(cross.v(memory).mean(1, keepdim=True)).expand_as(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["attention.v", "mlp.down"])
def test_zero_values_or_hidden_factors_silence_the_branch(name: str) -> None:
    model = build("decoder", Size(L=1, bias=False)).double()
    adapter = attach(model)
    block = model.stack.blocks[0]
    with torch.no_grad():
        adapter.sites()[f"stack.blocks.0.{name}"].l.zero_()  # type: ignore[operator, union-attr]
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    branch = block.attention if name.startswith("attention") else block.mlp
    assert not branch(x).any()


def test_only_the_product_of_key_factor_and_query_scale_matters() -> None:
    model = build("decoder", Size(L=1, bias=False)).double()
    twin = build("decoder", Size(L=1, bias=False)).double()
    adapter = attach(model)
    u = torch.rand(32, dtype=torch.float64) + 0.5
    with torch.no_grad():
        adapter.sites()["stack.blocks.0.attention.k"].l.copy_(u)  # type: ignore[operator, union-attr]
        twin.stack.blocks[0].attention.q.weight.mul_(u[:, None])
    assert torch.allclose(model(model.batch(0)), twin(model.batch(0)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [ScaledOutput, ScaledInput])
def test_the_factor_itself_is_no_strength_but_its_distance_from_one_is(kind: type[ScaledLinear]) -> None:
    site = drawn(kind(linear(12, 8)))  # type: ignore[call-arg]
    with torch.no_grad():
        site.l.uniform_(0.7, 1.3)
    x = torch.randn(5, 12, dtype=torch.float64)
    base, full = site.base(x), site(x)

    def at(c: float) -> Tensor:
        site.strength = c
        return site(x) - base

    assert not at(0.0).any()
    assert torch.allclose(at(-1.0), -at(1.0), rtol=0, atol=1e-13)
    assert torch.allclose(at(2.0), 2 * at(1.0), rtol=0, atol=1e-13)
    silenced = site.base.bias - base if kind is ScaledInput else -base  # scaling l by c = 0
    assert silenced.norm() > 3 * (full - base).norm()


def test_a_power_of_the_factor_reaches_base_and_inverse_but_is_not_antisymmetric() -> None:
    site = drawn(ScaledOutput(linear(12, 8)))  # type: ignore[arg-type]
    with torch.no_grad():
        site.l.uniform_(0.3, 1.7)
    weight = site.base.weight

    def change(c: float) -> Tensor:
        return (site.l**c - 1)[:, None] * weight

    assert not change(0.0).any()
    assert torch.allclose((1 + (site.l**-1 - 1)) * site.l, torch.ones(8, dtype=torch.float64))
    assert (change(-1.0) + change(1.0)).norm() > 0.3 * change(1.0).norm()


def test_narrow_keys_and_values_of_grouped_queries_have_narrow_vectors() -> None:
    shapes = {"q": (32, 32), "k": (32, 8), "v": (32, 8), "down": (64, 32)}
    block = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in shapes.items()})
    sizes = {path: site.l.numel() for path, site in attach(block).sites().items()}  # type: ignore[operator, union-attr]
    assert sizes == {"k": 8, "v": 8, "down": 64}


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_merged_rows_and_columns(d_in: int, d_out: int) -> None:
    base = linear(d_in, d_out)
    rows, columns = drawn(ScaledOutput(base)), drawn(ScaledInput(base))
    assert torch.equal(rows.merged()["weight"], torch.diag(rows.l) @ base.weight)  # type: ignore[index]
    assert torch.equal(rows.merged()["bias"], rows.l * base.bias)  # type: ignore[index]
    assert torch.equal(columns.merged()["weight"], base.weight @ torch.diag(columns.l))  # type: ignore[index]
    assert "bias" not in columns.merged()  # type: ignore[operator]


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_equals_peft_in_outputs_and_gradients(d_in: int, d_out: int, feedforward: bool) -> None:
    peft = pytest.importorskip("peft")
    base = linear(d_in, d_out)
    names = ["0"] if feedforward else []
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=names)
    theirs = peft.get_peft_model(nn.Sequential(base), config).base_model.model[0]
    ours = drawn((ScaledInput if feedforward else ScaledOutput)(base))
    vector = theirs.ia3_l["default"]
    assert vector.numel() == ours.l.numel()
    with torch.no_grad():
        vector.copy_(ours.l.view_as(vector))
    x = torch.randn(3, 4, d_in, dtype=torch.float64)
    target = torch.randn(3, 4, d_out, dtype=torch.float64)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert torch.allclose(ours(mine), theirs(other), rtol=0, atol=1e-13)
    ((ours(mine) - target) ** 2).sum().backward()
    ((theirs(other) - target) ** 2).sum().backward()
    note(ours(mine), theirs(other), [ours.l.grad, mine.grad], [vector.grad.flatten(), other.grad])
    assert torch.allclose(ours.l.grad, vector.grad.flatten(), rtol=1e-12)
    assert torch.allclose(mine.grad, other.grad, rtol=1e-12)


def test_peft_trains_as_many_values_of_a_small_encoder_decoder() -> None:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["k", "v", "down"], feedforward_modules=["down"])
    wrapped = peft.get_peft_model(build("encoder-decoder", TINY), config)
    assert sum(p.numel() for p in wrapped.parameters() if p.requires_grad) == 1_152


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_equals_lycoris_but_for_the_bias_of_a_scaled_output(d_in: int, d_out: int, on_input: bool) -> None:
    """It learns l - 1, and adds the base's bias unscaled."""
    modules = pytest.importorskip("lycoris.modules.ia3")
    base = linear(d_in, d_out)
    ours = drawn((ScaledInput if on_input else ScaledOutput)(base))
    theirs = modules.IA3Module("q", base, train_on_input=on_input).double()
    theirs.org_forward = base.forward
    with torch.no_grad():
        theirs.weight.copy_(ours.l - 1)
    x, weights = torch.randn(5, d_in, dtype=torch.float64), torch.randn(5, d_out, dtype=torch.float64)
    assert torch.allclose(ours.merged()["weight"], theirs.get_merged_weight()[0], rtol=0, atol=1e-13)  # type: ignore[index]
    mine, other = ours(x), theirs(x)
    scaled = 0.0 if on_input else (ours.l - 1) * base.bias
    assert torch.allclose(mine, other + scaled, rtol=0, atol=1e-12)
    (a,) = torch.autograd.grad(((mine - scaled) * weights).sum(), ours.l)
    (b,) = torch.autograd.grad((other * weights).sum(), theirs.weight)
    note(mine, other + scaled, [a], [b])
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_rounding_of_pefts_division_does_not_grow_over_a_hundred_merges() -> None:
    peft = pytest.importorskip("peft")
    base = nn.Linear(12, 8)
    start = base.weight.detach().clone()
    layer = peft.get_peft_model(nn.Sequential(base), peft.IA3Config(target_modules=["0"], feedforward_modules=[]))
    with torch.no_grad():
        layer.base_model.model[0].ia3_l["default"].uniform_(0.5, 1.5)

    def cycles() -> list[float]:
        errors = []
        for _ in range(100):
            layer.merge_adapter()
            layer.unmerge_adapter()
            errors.append((base.weight - start).abs().max().item())
        return errors

    with pytest.warns(UserWarning, match="inaccurate"):
        errors = cycles()
    assert 0 < errors[0] < 1e-7
    assert errors[-1] < 2 * errors[0]


def test_peft_scales_the_output_of_a_down_projection_that_is_no_feedforward_module() -> None:
    peft = pytest.importorskip("peft")
    model = pretrained("decoder")
    wrapped = peft.get_peft_model(model, peft.IA3Config(target_modules=["down"], feedforward_modules=[]))
    sizes = {p.numel() for n, p in wrapped.named_parameters() if p.requires_grad}
    assert sizes == {32}  # outputs; the paper's vector has the hidden width, 64


def test_pefts_unmerge_divides_and_ours_restores() -> None:
    peft = pytest.importorskip("peft")
    base = linear(6, 5)
    start = base.weight.detach().clone()
    layer = peft.get_peft_model(nn.Sequential(base), peft.IA3Config(target_modules=["0"], feedforward_modules=[]))
    vector = layer.base_model.model[0].ia3_l["default"]
    with torch.no_grad():
        vector.uniform_(0.5, 1.5)
        vector[0] = 0.0
    layer.merge_adapter()
    with pytest.warns(UserWarning, match="inaccurate"):
        layer.unmerge_adapter()
    assert not torch.allclose(base.weight[0], start[0], atol=1e-3)
    model = pretrained("decoder").double()
    adapter = attach(model)
    with torch.no_grad():
        adapter.sites()["stack.blocks.0.attention.k"].l.zero_()  # type: ignore[operator, union-attr]
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    adapter.merge()
    adapter.unmerge()
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())


# T-Few.


def random_answers(count: int = 3) -> tuple[Tensor, Tensor]:
    """Logits (B, 1 + N, T, V) and answers of unequal lengths, padded with -100."""
    logits = torch.randn(2, 1 + count, 4, 7, dtype=torch.float64)
    answers = torch.randint(7, (2, 1 + count, 4))
    answers[0, 1, 2:] = -100
    answers[1, 0, 3:] = -100
    return logits, answers


def spelled_out(logits: Tensor, answers: Tensor) -> tuple[float, float, float]:
    """The three losses of the paper, one token at a time."""
    p = logits.softmax(-1)
    lm = ul = ln = 0.0
    tokens = 0
    for b in range(len(answers)):
        scores = []
        for n in range(answers.shape[1]):
            row = [(t, int(y)) for t, y in enumerate(answers[b, n]) if y != -100]
            scores.append(sum(math.log(p[b, n, t, y]) for t, y in row) / len(row))
            if n:
                ul -= sum(math.log(1 - p[b, n, t, y]) for t, y in row)
                tokens += len(row)
        lm -= scores[0] / len(answers)
        ln -= (scores[0] - math.log(sum(math.exp(s) for s in scores))) / len(answers)
    return lm, ul / tokens, ln


def test_losses_equal_the_papers_sums() -> None:
    logits, answers = random_answers()
    lm, ul, ln = spelled_out(logits, answers)
    assert -mean_log_likelihood(logits[:, 0], answers[:, 0]).mean().item() == pytest.approx(lm, rel=1e-12)
    assert unlikelihood(logits[:, 1:], answers[:, 1:]).item() == pytest.approx(ul, rel=1e-12)
    assert length_normalized(logits, answers).item() == pytest.approx(ln, rel=1e-12)
    assert t_few_loss(logits, answers).item() == pytest.approx(lm + ul + ln, rel=1e-12)


def test_scores_do_not_depend_on_padding_or_on_repetition() -> None:
    logits = torch.randn(1, 3, 7, dtype=torch.float64)
    answers = torch.tensor([[1, 4, -100]])
    other = logits.clone()
    other[0, 2] = 9.0
    assert torch.equal(mean_log_likelihood(logits, answers), mean_log_likelihood(other, answers))
    twice = torch.cat([logits[:, :2], logits[:, :2]], dim=1)
    doubled = mean_log_likelihood(twice, torch.tensor([[1, 4, 1, 4]]))
    assert torch.allclose(doubled, mean_log_likelihood(logits, answers), rtol=1e-12)


def test_a_missing_wrong_answer_counts_for_nothing() -> None:
    logits, answers = random_answers(2)
    more = torch.cat([answers, torch.full_like(answers[:, :1], -100)], dim=1)
    wide = torch.cat([logits, torch.randn_like(logits[:, :1])], dim=1).requires_grad_()
    loss = t_few_loss(wide, more)
    assert loss.item() == pytest.approx(t_few_loss(logits, answers).item(), rel=1e-12)
    loss.backward()
    assert torch.isfinite(wide.grad).all()
    assert not wide.grad[:, -1].any()


def test_a_certain_wrong_answer_is_costly_but_finite() -> None:
    logits = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    logits[..., 0] = 1000.0
    assert 30 < unlikelihood(logits, torch.zeros(1, 1, 1, dtype=torch.long)).item() < 40


def test_official_unlikelihood_adds_a_hundredth_and_so_differs() -> None:
    logits, answers = random_answers()
    log_p = logits[:, 1:].log_softmax(-1)
    counts = answers[:, 1:] != -100
    token = log_p.gather(-1, answers[:, 1:].clamp(min=0)[..., None])[..., 0][counts]
    official = -(1 - token.exp() + 1e-2).log().mean()
    assert 0.005 < unlikelihood(logits[:, 1:], answers[:, 1:]).item() - official.item() < 0.05


def test_official_language_model_loss_averages_over_tokens_not_answers() -> None:
    logits, answers = random_answers()
    right, targets = logits[:, 0], answers[:, 0]  # four and three tokens
    official = torch.nn.functional.cross_entropy(right.flatten(0, 1), targets.flatten())
    means, counts = mean_log_likelihood(right, targets), (targets != -100).sum(1)
    assert torch.allclose(official, -(means * counts).sum() / counts.sum(), rtol=1e-12)
    assert not torch.allclose(official, -means.mean(), rtol=1e-3)


def test_loss_of_choices_is_t_fews_and_of_a_plain_batch_the_task_loss() -> None:
    model = pretrained("encoder-decoder").double()
    adapter = attach(model)
    batch = model.batch(0, count=3)
    assert torch.equal(adapter.loss(batch), model.loss(batch))
    wrong = (batch.targets[:, None] + torch.tensor([1, 2])[:, None]) % 20  # (3, 2, T)
    logits, answers = [], []
    for b in range(3):
        rows = torch.cat([batch.targets[b][None], wrong[b]])
        answers.append(rows)
        single = type(batch)(batch.inputs[b][None].expand(3, -1), rows)
        logits.append(model(single))
    expected = t_few_loss(torch.stack(logits), torch.stack(answers))
    assert torch.allclose(adapter.loss(Choices(batch, wrong)), expected, rtol=1e-10)


def test_t_few_training_ranks_the_right_answer_first() -> None:
    model = pretrained("encoder-decoder")
    adapter = attach(model)
    assert isinstance(adapter, IA3)
    losses = adapter.fit([questions(model, i) for i in range(40)], learning_rate=3e-2)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    asked = questions(model, 99)
    adapter.strength = 0.0
    before, wrong = adapter.loss(asked), int(adapter.rank(asked).count_nonzero())
    adapter.strength = 1.0
    assert adapter.loss(asked) < before
    assert int(adapter.rank(asked).count_nonzero()) <= wrong


def test_the_answer_of_largest_mean_log_likelihood_is_predicted_not_of_the_largest_sum() -> None:
    model = pretrained("encoder-decoder").double()
    adapter = attach(model)
    assert isinstance(adapter, IA3)
    asked = questions(model, 3)
    asked.wrong[:, 0, 2:] = -100  # short answers have large sums
    logits, answers = adapter._score(asked)
    means = mean_log_likelihood(logits, answers)
    sums = means * (answers != -100).sum(-1)
    assert torch.equal(adapter.rank(asked), means.argmax(1))
    assert not torch.equal(means.argmax(1), sums.argmax(1))


def questions(model: nn.Module, seed: int) -> Choices:
    batch = model.batch(seed)  # type: ignore[operator]
    return Choices(batch, (batch.targets[:, None] + torch.tensor([1, 5])[:, None]) % 23)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 1 / 60), (29, 0.5), (59, 1.0), (60, 1.0), (530, 0.5), (999, 1 / 940), (1000, 0.0)]
)
def test_schedule_of_1000_steps_warms_up_for_60_and_decays_linearly(step: int, rate: float) -> None:
    assert t_few_rate(step) == pytest.approx(rate)


def test_fit_follows_the_schedule_with_adafactor(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.Adafactor.step

    def watch(optimizer: torch.optim.Adafactor, closure: object = None) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.Adafactor, "step", watch)
    model = pretrained("encoder-decoder")
    adapter = attach(model)
    assert isinstance(adapter, IA3)
    adapter.fit([model.batch(i) for i in range(50)], learning_rate=3e-3)
    assert rates == pytest.approx([3e-3 * t_few_rate(i, 50) for i in range(50)])
    assert rates[:4] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])


def test_bad_targets_are_refused_and_the_model_left_alone() -> None:
    model = pretrained("decoder")
    with pytest.raises(AdapterError, match="down named in both"):
        attach(model, attention=("down",))
    with pytest.raises(AdapterError, match="no module named wo"):
        attach(model, feedforward=("wo",))
    with pytest.raises(AdapterError, match="none named"):
        attach(model, attention=(), feedforward=())
    assert all(p.requires_grad for p in model.parameters())
