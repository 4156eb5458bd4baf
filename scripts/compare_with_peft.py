"""Measures every method that peft ships and this catalog implements, both implementations in turn in one process.

    python scripts/compare_with_peft.py                        all methods, widths and thread counts, as tables
    python scripts/compare_with_peft.py --method oft --method hra --width 512 --threads 2 --rounds 3
    python scripts/compare_with_peft.py --record --json        writes catalog/measured/comparison.jsonl too

The model is a stack of four residual feed-forward blocks (up to 2048 features, GELU, down again) in float32 under a
batch of 8 x 128 tokens; both sides adapt the same layers with the same settings. A round gives every subject one turn,
the two sides of a method one right after the other; figures are medians over rounds, ratios come from one run. Goals
and what they compare are in catalog/pages/comparison.py; exit code 1 when one is missed. Needs the extra `parity`, and
an idle machine: with two threads each waits for the other, so that a busy one spoils the ratios too.

- attach: the method on a fresh stack; the median of three. Optimizers are made outside the clock.
- forward: without a graph. Step: forward and backward pass; optimizer and what follows it run outside the clock.
- saved: storage that a forward pass keeps for the backward pass, parameters and buffers left out.
- peak: most memory that torch has in use at once while attaching and in two training steps, beyond the model and the
  batch; each subject in a process of its own.
- unmerge: seconds to take a merge out again, after training, and the largest error of a base weight.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from catalog import evidence
from catalog.entry import Entry, load_entries
from catalog.errors import CatalogError, UsageError
from catalog.pages import comparison
from catalog.pages.comparison import LEFT_OUT, OURS, PEFT
from reference_impls import registry
from reference_impls.benchmark import peak_bytes

WIDTHS, THREADS, ROUNDS, ATTACHES, SECONDS = (512, 1024), (2, 1), 5, 3, 1.0
KEY = ("slug", "width", "threads", "library")
TARGETS = ("up", "down")
VOCABULARY = 100

Settings = Mapping[str, Any]
Row = dict[str, Any]


# What is compared.


@dataclass(frozen=True)
class Pair:
    """One method on both sides: keywords of our attach(), and peft's configuration class with its keywords.

    A keyword may be a function of the stack's size. ``said`` tells the settings to readers; ``counts`` is why the two
    train different numbers of values, where they do; ``part`` is what the stack needs besides: "norm" or "tokens".
    """

    slug: str
    said: str
    ours: Settings
    config: str | None = None
    theirs: Settings = field(default_factory=dict)
    counts: str = ""
    part: str = ""


def share_of_entries(size: Size) -> float:
    """The density at which SHiRA trains 8 (d_in + d_out) entries of a matrix, as peft's rank 8 does."""
    return (8 * (size.width + size.hidden) + 0.5) / (size.width * size.hidden)


LORA = {"rank": 8, "alpha": 16}
LORA_PEFT = {"r": 8, "lora_alpha": 16}
PAIRS = (
    Pair("lora", "r = 8, alpha = 16", LORA, "LoraConfig", LORA_PEFT),
    Pair("lora-fa", "r = 8, alpha = 16", LORA, "LoraConfig", LORA_PEFT),
    Pair(
        "adalora",
        "ranks 12 to 8, penalty 0.1",
        {"initial_rank": 12, "target_rank": 8, "alpha": 16, "penalty": 0.1},
        "AdaLoraConfig",
        {
            "init_r": 12,
            "target_r": 8,
            "lora_alpha": 16,
            "orth_reg_weight": 0.1,
            "tinit": 500,
            "tfinal": 1500,
            "deltaT": 10,
            "total_step": 3000,
        },
    ),
    Pair("dora", "r = 8, alpha = 16", LORA, "LoraConfig", {**LORA_PEFT, "use_dora": True}),
    Pair(
        "pissa",
        "r = 8, randomized SVD of 4 iterations",
        {"rank": 8, "alpha": 8, "power_iterations": 4},
        "LoraConfig",
        {"r": 8, "lora_alpha": 8, "init_lora_weights": "pissa_niter_4"},
    ),
    Pair("vera", "r = 256", {"rank": 256}, "VeraConfig", {"r": 256}),
    Pair("randlora", "r = 32", {"rank": 32, "alpha": 640}, "RandLoraConfig", {"r": 32, "randlora_alpha": 640}),
    Pair(
        "vblora",
        "r = 4, 256 vectors of 256, k = 2",
        {"rank": 4, "vectors": 256, "length": 256, "k": 2},
        "VBLoRAConfig",
        {"r": 4, "num_vectors": 256, "vector_length": 256, "topk": 2},
    ),
    Pair("delora", "r = 8", {"rank": 8, "lambda_start": 15.0}, "DeloraConfig", {"r": 8, "delora_lambda": 15}),
    Pair("miss", "r = 16", {"rank": 16}, "MissConfig", {"r": 16}),
    Pair("bone", "r = 16, Bat", {"rank": 16, "bat": True}, "MissConfig", {"r": 16, "init_weights": "bat"}),
    Pair(
        "poly",
        "4 tasks, 4 skills, r = 8",
        {"tasks": 4, "skills": 4, "rank": 8},
        "PolyConfig",
        {"n_tasks": 4, "n_skills": 4, "r": 8},
    ),
    Pair(
        "mhr",
        "4 tasks, 4 skills in 4 splits, r = 8",
        {"tasks": 4, "skills": 4, "rank": 8, "splits": 4, "relaxed": True},
        "PolyConfig",
        {"n_tasks": 4, "n_skills": 4, "r": 8, "n_splits": 4},
    ),
    Pair("loha", "r = 8, alpha = 8", {"rank": 8, "alpha": 8}, "LoHaConfig", {"r": 8, "alpha": 8}),
    Pair(
        "lokr",
        "factors near the root, the larger split at r = 8",
        {"factor": None, "rank": 8, "alpha": 8},
        "LoKrConfig",
        {"r": 8, "alpha": 8},
    ),
    Pair(
        "fourierft",
        "n = 1000, alpha = 150",
        {"frequencies": 1000, "alpha": 150.0},
        "FourierFTConfig",
        {"n_frequency": 1000, "scaling": 150.0},
    ),
    Pair("c3a", "blocks of 256", {"block_size": 256}, "C3AConfig", {"block_size": 256}),
    Pair(
        "oft",
        "32 blocks, exact Cayley transform",
        {"blocks": 32},
        "OFTConfig",
        {"r": 32, "oft_block_size": 0, "use_cayley_neumann": False},
    ),
    Pair(
        "boft",
        "one factor of blocks of 4, with a gain",
        {"factors": 1, "block_size": 4, "rescale": True},
        "BOFTConfig",
        {"boft_block_size": 4},
        counts="peft trains full blocks and uses their skew part, here the entries above the diagonal are trained",
    ),
    Pair("hra", "r = 8, no penalty", {"rank": 8, "penalty": 0.0}, "HRAConfig", {"r": 8}),
    Pair("road", "RoAd_1", {"variant": 1}, "RoadConfig", {"variant": "road_1", "group_size": 2}),
    Pair(
        "ia3",
        "outputs of up, inputs of down",
        {"attention": ("up",), "feedforward": ("down",)},
        "IA3Config",
        {"feedforward_modules": ["down"]},
    ),
    Pair(
        "shira",
        "random mask of 8 (d_in + d_out) entries",
        {"density": share_of_entries, "mask": "random"},
        "ShiraConfig",
        {"r": 8, "random_seed": 0},
    ),
    Pair("ln-tuning", "a norm in every block", {}, "LNTuningConfig", {"target_modules": ["norm"]}, part="norm"),
    Pair(
        "trainable-tokens",
        "16 of 100 tokens",
        {"token_indices": range(16)},
        "TrainableTokensConfig",
        {"token_indices": list(range(16)), "target_modules": ["embed"]},
        part="tokens",
    ),
    Pair("ether", "one block", {"blocks": 1}),
)
"""Every method compared, LoRA first; the last ones peft does not ship, but they have a goal of their own."""

UNTARGETED = {"ln-tuning", "trainable-tokens", "ia3"}
"""Methods whose attach() has no keyword for the layers, or names them itself."""

BY_TASK = {"poly", "mhr"}
"""Methods that need to know the task of every example; merged for one task here, and not at all in peft."""


# The model.


@dataclass(frozen=True)
class Size:
    """Dimensions of the stack and its batch."""

    width: int = 512
    hidden: int = 2048
    blocks: int = 4
    count: int = 8
    length: int = 128


@dataclass(frozen=True)
class Batch:
    """Vectors or tokens, what the stack should make of them, and the task of every sequence."""

    inputs: Tensor
    targets: Tensor
    task_ids: Tensor


class Block(nn.Module):
    """x + down(GELU(up(norm(x)))), the norm only where it is asked for."""

    def __init__(self, size: Size, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.width) if norm else nn.Identity()
        self.up = nn.Linear(size.width, size.hidden)
        self.down = nn.Linear(size.hidden, size.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    """Residual blocks, behind an embedding where the input is tokens; its loss is where peft looks for one."""

    def __init__(self, size: Size, part: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, size.width) if part == "tokens" else nn.Identity()
        self.blocks = nn.ModuleList(Block(size, part == "norm") for _ in range(size.blocks))

    def forward(self, batch: Batch) -> SimpleNamespace:
        x = self.embed(batch.inputs)
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(loss=F.mse_loss(x, batch.targets))

    def loss(self, batch: Batch) -> Tensor:
        return self(batch).loss


@dataclass(frozen=True)
class Ground:
    """The base weights of one kind of stack, which all stacks made from them share, and a batch."""

    size: Size
    part: str
    weights: dict[str, Tensor]
    batch: Batch

    @classmethod
    def drawn(cls, size: Size, part: str) -> Ground:
        """The same for the same size."""
        torch.manual_seed(0)
        weights = {name: tensor.detach() for name, tensor in Stack(size, part).state_dict().items()}
        shape = (size.count, size.length)
        x = torch.randint(VOCABULARY, shape) if part == "tokens" else torch.randn(*shape, size.width)
        return cls(size, part, weights, Batch(x, torch.randn(*shape, size.width), torch.arange(size.count) % 4))

    def stack(self) -> Stack:
        """A fresh stack; nothing is copied."""
        with torch.device("meta"):
            stack = Stack(self.size, self.part)
        stack.load_state_dict(self.weights, assign=True)
        return stack


# The two sides.


class Ours:
    """A method as the catalog implements it, on a stack."""

    library = OURS

    def __init__(self, pair: Pair, ground: Ground) -> None:
        self.pair, self.batch, self.stack = pair, ground.batch, ground.stack()
        self.base = list(self.stack.parameters())
        self.settings = resolved(pair.ours, ground.size)
        if pair.slug not in UNTARGETED:
            self.settings["targets"] = TARGETS

    def attach(self) -> None:
        """The part that is timed."""
        self.adapter: Any = registry.attach(self.pair.slug, self.stack, **self.settings)

    def prepare(self) -> None:
        """Make the optimizer."""
        self.optimizer = self.adapter.optimizer(1e-3)

    def trained(self) -> int:
        return self.adapter.count()

    def loss(self) -> Tensor:
        return self.adapter.loss(self.batch)

    def update(self) -> None:
        """What follows the backward pass."""
        self.optimizer.step()
        self.adapter.after_step()
        self.optimizer.zero_grad()

    def merge(self) -> None:
        if self.pair.slug in BY_TASK:
            self.adapter.task = 0
        self.adapter.merge()

    def unmerge(self) -> None:
        self.adapter.unmerge()


class Theirs:
    """The same method as peft has it."""

    library = PEFT

    def __init__(self, pair: Pair, ground: Ground) -> None:
        import peft

        self.pair, self.batch, self.stack = pair, ground.batch, ground.stack()
        self.base = list(self.stack.parameters())
        settings = {"target_modules": list(TARGETS), **resolved(pair.theirs, ground.size)}
        self.config = getattr(peft, str(pair.config))(**settings)
        self.steps = 0

    def attach(self) -> None:
        """The part that is timed."""
        import peft

        self.model = peft.get_peft_model(self.stack, self.config)

    def prepare(self) -> None:
        """Make the optimizer; that of LoRA-FA is the method, and freezes the down-projections."""
        if self.pair.slug == "lora-fa":
            from peft.optimizers import create_lorafa_optimizer

            self.optimizer = create_lorafa_optimizer(model=self.model, r=8, lora_alpha=16, lr=1e-3)
        else:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)

    def trained(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def loss(self) -> Tensor:
        # AdaLoRA's penalty and the ids of tasks are added in the tuner, which the model around it passes by.
        if self.pair.slug == "adalora":
            return self.model.base_model(self.batch).loss
        if self.pair.slug in BY_TASK:
            return self.model.base_model(self.batch, task_ids=self.batch.task_ids).loss
        return self.model(self.batch).loss

    def update(self) -> None:
        """What follows the backward pass."""
        self.optimizer.step()
        self.steps += 1
        if self.pair.slug == "adalora":
            self.model.base_model.update_and_allocate(self.steps)
        self.optimizer.zero_grad()

    def merge(self) -> None:
        self.model.base_model.merge_adapter()

    def unmerge(self) -> None:
        self.model.base_model.unmerge_adapter()


Side = Ours | Theirs


def sides(pair: Pair) -> list[type[Side]]:
    """Ours, and peft's where it has one."""
    return [Ours, Theirs] if pair.config else [Ours]


def resolved(settings: Settings, size: Size) -> dict[str, Any]:
    """Keywords with what depends on the size worked out."""
    return {name: value(size) if callable(value) else value for name, value in settings.items()}


def ready(side: type[Side], pair: Pair, ground: Ground) -> Side:
    """A subject that can take steps."""
    subject = side(pair, ground)
    torch.manual_seed(0)
    subject.attach()
    subject.prepare()
    return subject


# Measuring.


def clock(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forward(subject: Side) -> None:
    with torch.no_grad():
        subject.loss()


def step(subject: Side) -> float:
    """Seconds of a forward and a backward pass; the update after them is not timed."""
    seconds = clock(lambda: subject.loss().backward())
    subject.update()
    return seconds


def attach_times(pairs: Iterable[Pair], grounds: Mapping[str, Ground]) -> dict[tuple[str, str], float]:
    """Median seconds to attach to a fresh stack; the two sides take turns."""
    times: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        for _ in range(ATTACHES + 1):  # the first one loads what is imported late
            for side in sides(pair):
                subject = side(pair, grounds[pair.part])
                torch.manual_seed(0)
                times.setdefault((pair.slug, side.library), []).append(clock(subject.attach))
    return {key: statistics.median(values[1:]) for key, values in times.items()}


def take_turns(
    subjects: list[Side], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[tuple[float, float]]:
    """Median seconds of a forward pass and of a step of each; who has had ``seconds`` sits out the later rounds."""
    times: list[list[tuple[float, float]]] = [[] for _ in subjects]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for subject, taken in zip(subjects, times, strict=True):
            if sum(map(sum, taken)) < seconds:
                taken.append((clock(partial(forward, subject)), step(subject)))
    return [(statistics.median(f for f, _ in taken), statistics.median(s for _, s in taken)) for taken in times]


def saved_bytes(subject: Side) -> int:
    """Bytes of storage, not of parameters or buffers, that a forward pass keeps for the backward pass after it."""
    model = subject.stack if isinstance(subject, Ours) else subject.model
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        subject.loss().backward()
    return sum(storage.nbytes() for storage in kept.values())


def unmerging(subject: Side) -> tuple[float | None, float | None]:
    """Median seconds to unmerge, and the largest error of a base weight after the first time; None: it cannot merge."""
    if subject.pair.slug in BY_TASK and isinstance(subject, Theirs):
        return None, None
    for parameter in subject.base:  # peft merges in place, and other stacks share these
        parameter.data = parameter.data.clone()
    start = [parameter.detach().clone() for parameter in subject.base]
    times: list[float] = []
    error = 0.0
    while len(times) < 3 and sum(times) < 0.3:
        subject.merge()
        times.append(clock(subject.unmerge))
        if len(times) == 1:
            error = max((p - q).abs().max().item() for p, q in zip(subject.base, start, strict=True))
    return statistics.median(times), error


def peak_of(slug: str, library: str, size: Size) -> int:
    """Peak memory of one subject; to be called in a process of its own."""
    quiet()
    torch.set_num_threads(1)
    (pair,) = (pair for pair in PAIRS if pair.slug == slug)
    ground = Ground.drawn(size, pair.part)
    subject = next(side for side in sides(pair) if side.library == library)(pair, ground)

    def work() -> None:
        subject.attach()
        subject.prepare()
        subject.batch = Batch(*(tensor[:1] for tensor in astuple(ground.batch)))
        step(subject)  # gives the optimizer its state
        subject.batch = ground.batch
        step(subject)

    return peak_bytes(work, torch.device("cpu"))


def peaks(pairs: Iterable[Pair], size: Size) -> dict[tuple[str, str], int]:
    """Peak memory of every subject, each in a fresh process that has loaded the libraries and nothing else."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", "peft"])
    keys = [(pair.slug, side.library) for pair in pairs for side in sides(pair)]
    # Allocations are counted, not timed: as many at once as there are cores.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        return dict(zip(keys, pool.map(peak_of, *zip(*keys, strict=True), [size] * len(keys)), strict=True))


def measure(
    pairs: list[Pair], size: Size, threads: Iterable[int], turns: tuple[int, float], say: Callable[[str], None]
) -> Iterator[Row]:
    """Rows of all pairs at one size."""
    say("peak memory")
    peak_memory = peaks(pairs, size)
    grounds = {part: Ground.drawn(size, part) for part in {pair.part for pair in pairs}}
    subjects = [ready(side, pair, grounds[pair.part]) for pair in pairs for side in sides(pair)]
    activations = [saved_bytes(subject) for subject in subjects]
    for subject in subjects:  # that was the first step, which warmed up
        subject.update()
    for count in threads:
        torch.set_num_threads(count)
        label = f"{count} thread{'s' * (count > 1)}"
        say(f"{label}: attaching")
        attached = attach_times(pairs, grounds)
        times = take_turns(subjects, *turns, lambda text: say(f"{label}: {text}"))  # noqa: B023
        say(f"{label}: merging")
        for subject, saved, (forward_s, step_s) in zip(subjects, activations, times, strict=True):
            unmerge_s, error = unmerging(subject)
            key = (subject.pair.slug, subject.library)
            yield {
                "slug": subject.pair.slug,
                "width": size.width,
                "threads": count,
                "library": subject.library,
                "settings": subject.pair.said,
                "trained": subject.trained(),
                "attach_s": attached[key],
                "forward_s": forward_s,
                "step_s": step_s,
                "saved_bytes": saved,
                "peak_bytes": peak_memory[key],
                "unmerge_s": unmerge_s,
                "unmerge_error": error,
            }


def stamped(row: Row, entry: Entry) -> Row:
    """The row with its libraries' versions, where, when and on which code it was measured."""
    ours = row["library"] == OURS
    known = evidence.provenance(entry)
    return {
        **row,
        **known,
        "version": version("peft-catalog" if ours else "peft"),
        "implementation": known["implementation"] if ours else "",
        "device_name": f"{platform.machine()}, {os.cpu_count()} cores",
    }


# The command.


def main(
    method: Annotated[
        list[str] | None, typer.Option(help="A method by its slug, again for more; all by default.")
    ] = None,
    width: Annotated[list[int] | None, typer.Option(min=1, help="Width of the stack; 512 and 1024.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads torch may use; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every subject.")] = ROUNDS,
    seconds: Annotated[float, typer.Option(help="A subject that has had so many sits out later rounds.")] = SECONDS,
    hidden: Annotated[int, typer.Option(min=1, help="Width between up and down.")] = Size.hidden,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each of the 8 sequences.")] = Size.length,
    record: Annotated[bool, typer.Option("--record", help="Keep the rows as shipped evidence.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Rows and goals as JSON.")] = False,
) -> None:
    """Compare the implementations with peft's."""
    try:
        if find_spec(PEFT) is None:
            raise CatalogError(
                "comparing needs peft, which is not installed", hint="pip install 'peft-catalog[run,parity]'"
            )
        pairs = chosen(method or [])
        size = Size(hidden=hidden, length=length)
        if record and size != Size():
            raise UsageError("only the sizes of every run are recorded: leave --hidden and --length out")
        entries = {entry.slug: entry for entry in load_entries()}
        quiet()
        rows: list[Row] = []
        for each in width or WIDTHS:
            say = lambda text: typer.echo(f"{each} wide: {text}", err=True)  # noqa: B023, E731
            found = measure(pairs, replace(size, width=each), threads or THREADS, (rounds, seconds), say)
            rows += [stamped(row, entries[row["slug"]]) for row in found]
        if record:
            typer.echo(f"recorded in {evidence.record('comparison', rows, KEY)}", err=True)
    except CatalogError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error
    goals = comparison.goals(rows)
    if as_json:
        typer.echo(json.dumps({"rows": rows, "goals": [goal.as_dict() for goal in goals]}, indent=2))
    else:
        show(rows, goals)
    raise typer.Exit(0 if all(goal.met for goal in goals) else 1)


def chosen(slugs: list[str]) -> list[Pair]:
    """The pairs asked for, and LoRA, which all are compared with."""
    known = [pair.slug for pair in PAIRS]
    for slug in slugs:
        if slug in LEFT_OUT:
            raise UsageError(f"{slug} is not compared: {LEFT_OUT[slug]}")
        if slug not in known:
            raise UsageError(f"{slug!r} is not compared with peft", allowed=known)
    return [pair for pair in PAIRS if not slugs or pair.slug in {"lora", *slugs}]


def quiet() -> None:
    """Drop what peft warns about: the missing CUDA extension of BOFT, and merges that lose precision."""
    warnings.filterwarnings("ignore")


def show(rows: list[Row], goals: list[comparison.Goal]) -> None:
    """The figures as one table a width and thread count, and the goals."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    headings = ("method", "step ms", "peft", "ratio", "LoRA = 1", "forward", "attach", "saved", "LoRA = 1", "peak")
    for panel in comparison.panels(rows):
        table = Table(box=None, pad_edge=False, title=f"\n{panel.place}; ratios to peft unless they say LoRA")
        for heading in (*headings, "unmerge ms, error", "peft"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for line in panel.lines:
            table.add_row(*cells(line))
        console.print(table)
        console.print(f"geometric mean of step ratios: {ratio(panel.mean('step_s'))}")
    for goal in goals:
        console.print(f"{'reached' if goal.met else 'MISSED '}  {goal.label}")
        for slug, misses in goal.by_slug.items():
            figures = "; ".join(f"{miss.figure} ({miss.place})" for miss in misses)
            console.print(f"         {slug or 'all'}: {figures}  {goal.why(slug)}")


def cells(line: comparison.Line) -> list[str]:
    ours, theirs = line.ours, line.theirs
    return [
        line.slug,
        f"{1000 * ours['step_s']:.1f}",
        f"{1000 * theirs['step_s']:.1f}" if theirs else "–",
        ratio(line.ratio("step_s")),
        ratio(line.to_lora("step_s")),
        ratio(line.ratio("forward_s")),
        ratio(line.ratio("attach_s")),
        ratio(line.ratio("saved_bytes")),
        ratio(line.to_lora("saved_bytes")),
        ratio(line.ratio("peak_bytes")),
        unmerged(ours),
        unmerged(theirs),
    ]


def unmerged(row: comparison.Row | None) -> str:
    if row is None or row["unmerge_s"] is None:
        return "–"
    return f"{1000 * row['unmerge_s']:.2f}, {row['unmerge_error']:.0e}"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
