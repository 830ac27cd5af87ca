"""The one training loop: a recipe, an objective, steps, checkpoints, sample sheets. Devices and processes are accelerate's."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import msgspec
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from edgegen.errors import InputError, SourceError, TrainingError
from edgegen.export.recipe import Recipe, own_code
from edgegen.pipelines.images import PixelRange
from edgegen.train.checkpoint import State, check_output, read_state, restore, save
from edgegen.train.data import Data
from edgegen.train.objective import Objective, tell_latents
from edgegen.train.order import MODULES, SHEET, STEP, Batches, in_order, stream_seed
from edgegen.train.recipe import Training, load_training

SHEET_IMAGES = 60  # six rows of ten: ten classes one under another
OnStep = Callable[[int, int, Mapping[str, float]], None]  # (steps done, all, losses of the last one)


@dataclass(frozen=True)
class Options:
    """What the command line says; None is what the recipe says, or with `resume` the state."""

    steps: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    resume: bool = False
    force: bool = False
    samples: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class TrainReport:
    """What came out: `steps` in all, of which `seconds` went into `taken`; `stopped` is the signal that ended it early."""

    path: Path
    steps: int
    taken: int
    seconds: float
    losses: Mapping[str, float]
    sheets: tuple[Path, ...] = ()
    stopped: int | None = None
    is_main: bool = True  # of several processes one tells it

    def lines(self) -> list[str]:
        """For people."""
        losses = ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())
        pace = f"{self.taken} steps in {self.seconds:.0f} s" if self.taken else "nothing left to do"
        said = [f"{self.path}: step {self.steps}, {pace}{f', {losses}' if losses else ''}"]
        return [*said, *(f"last sample sheet: {path}" for path in self.sheets[-1:])]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "steps": self.steps,
            "taken": self.taken,
            "seconds": self.seconds,
            "losses": dict(self.losses),
            "sheets": [str(path) for path in self.sheets],
            "stopped": self.stopped,
        }


def train(path: Path, output: Path, options: Options, on_step: OnStep | None = None) -> TrainReport:
    """Train the modules of the recipe at `path`; the weights to export go to `output`, the state beside it.

    Raises:
        SourceError: the recipe, or its data, is not there or not usable.
        InputError: options that do not go together, or a place that is taken.
        TrainingError: a loss or a weight is no longer finite, the disk is full, or the state does not fit.
    """
    recipe, training = load_training(path)
    check_output(output, resume=options.resume, force=options.force)
    if options.samples is not None:
        _check_samples(options.samples)
    accelerator = _accelerator(options)
    try:
        used = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(used):
            run = _prepare(recipe, training, output, options, accelerator)
            with _stopping() as stop:
                report = run.go(stop, on_step)
        accelerator.end_training()  # the processes part together
        return report
    finally:
        # Its state is the process's: another training here may want another precision.
        alone = accelerator.num_processes == 1
        AcceleratorState._reset_state()
        if alone:
            PartialState._reset_state()


@dataclass
class Stop:
    """Whether a signal has asked to end after this step."""

    number: int = 0


@dataclass
class Run:
    """One training, ready to go.

    `state.steps` are done; `saved` is the step of the checkpoint that is on the disk; `measured` is what the objective last
    measured of itself, which it does before each checkpoint.
    """

    training: Training
    objective: Objective
    batches: Batches
    accelerator: Accelerator
    state: State
    steps: int
    output: Path
    samples: Path | None
    saved: int | None
    sheets: list[Path] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def go(self, stop: Stop, on_step: OnStep | None) -> TrainReport:
        """Take all steps that are left, or those until a signal comes."""
        begin, started, losses = self.state.steps, time.perf_counter(), dict[str, float]()
        stopped: int | None = None
        while self.state.steps < self.steps and stopped is None:
            losses, stopped = self._step(stop)
            done = self.state.steps
            if done % self.training.save_every == 0 or done == self.steps or stopped is not None:
                if stopped is None and self.accelerator.is_main_process:
                    self.measured = self.objective.measure()
                self._save()
            losses |= self.measured
            if self.samples is not None and (done % self.training.sheet_every == 0 or done == self.steps):
                self._draw(self.samples)
            if on_step is not None and self.accelerator.is_main_process:
                on_step(done, self.steps, losses)
        seconds, taken = time.perf_counter() - started, self.state.steps - begin
        sheets, is_main = tuple(self.sheets), self.accelerator.is_main_process
        return TrainReport(self.output, self.state.steps, taken, seconds, losses, sheets, stopped, is_main)

    def _step(self, stop: Stop) -> tuple[dict[str, float], int | None]:
        step, objective = self.state.steps, self.objective
        torch.manual_seed(stream_seed(self.state.seed, STEP, step, self.accelerator.process_index))
        for optimizer in objective.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / max(1, self.training.warmup))
        with own_code(f"step {step + 1} of the training"):
            given = objective.step(self.batches(step, objective.device), step)
        losses, stopped = self._agree(given, stop)
        for name, value in losses.items():
            if not abs(value) < float("inf"):  # NaN compares with nothing
                raise TrainingError(f"the loss {name} became {value} in step {step + 1}; {self._what_stays()}")
        objective.average(step)
        self.state = msgspec.structs.replace(self.state, steps=step + 1)
        return losses, stopped

    def _agree(self, losses: Mapping[str, torch.Tensor], stop: Stop) -> tuple[dict[str, float], int | None]:
        """The mean of the losses over processes, and the largest number of a signal that any of them was sent."""
        mean = self.accelerator.reduce(torch.stack([loss.float() for loss in losses.values()]), "mean")
        number = stop.number
        if self.accelerator.num_processes > 1:
            number = int(self.accelerator.gather(torch.tensor([number], device=mean.device)).max())
        return dict(zip(losses, mean.tolist(), strict=True)), number or None

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            try:
                save(self.objective, self.state, self.output)
            except TrainingError as error:
                raise TrainingError(f"{error}; {self._what_stays()}") from error
        self.accelerator.wait_for_everyone()
        self.saved = self.state.steps

    def _what_stays(self) -> str:
        if self.saved is None:
            return "no checkpoint was written yet; try a lower learning rate, or --precision fp32"
        return f"the last good checkpoint, of step {self.saved}, is {self.output}"

    def _draw(self, folder: Path) -> None:
        """Write a sample sheet; what it draws at random changes nothing for the steps that follow."""
        if not self.accelerator.is_main_process:
            return
        from edgegen.media import sheet, write_png

        torch.manual_seed(stream_seed(self.state.seed, SHEET))  # the same latents in each sheet
        images = self.objective.sample(SHEET_IMAGES).float().cpu()
        # A sheet shows how far it is: a pixel that is not finite yet is no reason to stop.
        pixels = self.batches.pixels.to_uint8(torch.nan_to_num(images).numpy())
        path = folder / f"step-{self.state.steps:06d}.png"
        write_png(path, sheet(pixels, 10))
        self.sheets.append(path)


def _prepare(recipe: Recipe, training: Training, output: Path, options: Options, accelerator: Accelerator) -> Run:
    """Make modules, objective and batches; load the state where there is one to go on from."""
    with own_code(f"the data of {recipe.name}"):
        data = training.data()
    state = _begin(recipe, training, data, output, options)
    steps = training.steps if options.steps is None else options.steps
    if state.batch_size % accelerator.num_processes:
        raise InputError(f"the batch size is {state.batch_size}; {accelerator.num_processes} processes cannot share it evenly")
    if steps < state.steps:
        raise InputError(f"{output} has {state.steps} steps already; --steps is the number in all, give more than {steps}")
    torch.manual_seed(stream_seed(state.seed, MODULES))
    assert recipe.modules is not None  # noqa: S101  # load_training has looked
    with own_code(f"the modules of {recipe.name}"):
        returned = recipe.modules()
    made = returned if isinstance(returned, Mapping) else {"model": returned}
    tell_latents(made, recipe.inputs)
    with own_code(f"the objective of {recipe.name}"):
        objective = training.objective(made)
    objective.accelerator = accelerator
    objective.to(accelerator.device)
    for optimizer in objective.optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    if options.resume:
        restore(objective, output)
    _check_classes(data, objective.classes)
    if objective.wants_held_out:
        _hold_out(objective, recipe, training, data)
    batches = Batches(
        data,
        _pixels(recipe),
        seed=state.seed,
        batch_size=state.batch_size,
        flip=training.flip,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    saved = state.steps if options.resume else None
    return Run(training, objective, batches, accelerator, state, steps, output, options.samples, saved)


def _hold_out(objective: Objective, recipe: Recipe, training: Training, data: Data) -> None:
    """Give the objective the images to measure itself on. SourceError where there are none, or of another shape."""
    if training.held_out is None:
        raise SourceError(f"{recipe.name} is measured on images that it does not learn from; give its TRAINING `held_out`")
    held_out, pixels = training.held_out(), _pixels(recipe)
    if held_out.images.shape[1:] != data.images.shape[1:]:
        shapes = f"{list(held_out.images.shape[1:])}, those to learn from {list(data.images.shape[1:])}"
        raise SourceError(f"{recipe.name}: held-out images are {shapes}")
    _check_classes(held_out, objective.classes)
    objective.held_out = lambda: in_order(held_out, pixels, objective.device)


def _begin(recipe: Recipe, training: Training, data: Data, output: Path, options: Options) -> State:
    """The state to begin with. InputError where the options contradict the one on the disk."""
    given = {"seed": options.seed, "batch_size": options.batch_size}
    if not options.resume:
        batch_size = training.batch_size if options.batch_size is None else options.batch_size
        return State(recipe.name, 0, options.seed or 0, batch_size, data.images.shape)
    state = read_state(output)
    for name, value in given.items():
        if value is not None and value != getattr(state, name):
            raise InputError(
                f"{output} was begun with --{name.replace('_', '-')} {getattr(state, name)}; it goes on only with that"
            )
    if (state.recipe, state.data) != (recipe.name, data.images.shape):
        raise InputError(
            f"{output} was trained by the recipe {state.recipe} on images {list(state.data)}; "
            f"this is {recipe.name} on {list(data.images.shape)}"
        )
    return state


def _pixels(recipe: Recipe) -> PixelRange:
    try:
        return msgspec.convert(recipe.settings.get("pixels", {}), PixelRange)
    except msgspec.ValidationError as error:
        raise SourceError(f"{recipe.name}: the setting `pixels` wants black and white, such as -1.0 and 1.0: {error}") from None


def _check_classes(data: Data, classes: int) -> None:
    if classes and data.labels is not None and not 0 <= data.labels.min() <= data.labels.max() < classes:
        there = f"labels from {data.labels.min()} to {data.labels.max()}"
        raise InputError(f"the data has {there}; the objective has {classes} classes, from 0")


def _accelerator(options: Options) -> Accelerator:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; take --device cpu, or install a PyTorch with CUDA")
    # Several processes without a GPU find one another only where accelerate is told to take the CPU.
    are_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = options.device == "cpu" or (are_several and not torch.cuda.is_available())
    return Accelerator(cpu=on_cpu, mixed_precision="no" if options.precision == "fp32" else "bf16")


def _check_samples(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write sample sheets to {folder}: {error.strerror or error}") from error


@contextmanager
def _stopping() -> Iterator[Stop]:
    """SIGINT and SIGTERM end the training after the step that runs; a second one at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
