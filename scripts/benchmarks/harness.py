"""How speed and memory are measured: side by side, by medians, memory in processes of their own."""

import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from brainslices import cli
from brainslices.errors import InputError
from brainslices.visualization.figures import growth_figure

__all__ = [
    "PROCESS_STATUS",
    "PeakMemory",
    "Row",
    "Setting",
    "interleaved_medians",
    "draw_growth",
    "empty_memory",
    "gpu_memory",
    "measure_all",
    "table",
    "timed",
    "training_rate",
]

GIGABYTE = 10**9
PROCESS_STATUS = Path("/proc/self/status")
SAMPLING_INTERVAL_S = 0.002

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Args:
        name: what was measured.
        unit: "s", "GB" (10**9 bytes) or a rate, such as "slices/s".
        ours: this project's figure.
        peer: what the same costs otherwise, measured in the same run, or None.
        against: what `peer` is.
        at_most: bar for `ours`, in its unit, or None.
        at_least: bar for `ratio`, or None.
        note: what the figure depends on.
        curve: what the figure is a point of, such as "train on a slice"; "" for a row by itself.
        grows: what grows along the curve, such as "training slices".
        size: how large that is in this row.
    """

    name: str
    unit: str
    ours: float
    peer: float | None = None
    against: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    curve: str = ""
    grows: str = ""
    size: int = 0

    @property
    def ratio(self) -> float | None:
        """How many times better `ours` is than `peer`: above 1 is faster, or smaller."""
        if self.peer is None:
            return None
        return self.ours / self.peer if self.unit.endswith("/s") else self.peer / self.ours

    @property
    def bar(self) -> str:
        """The bar in words, empty without one."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f">= {self.at_least:g}x"

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.at_most is not None:
            return self.ours <= self.at_most
        return None if self.at_least is None else self.ratio >= self.at_least

    def as_dict(self) -> dict:
        """Fields, `ratio` and `met`, as JSON takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "ratio": self.ratio, "met": self.met}


@dataclass(frozen=True)
class Setting:
    """What a measurement may use.

    Args:
        archive: folder of the slice archive.
        scripts: folder of the commands.
        workspace: empty folder for large temporary files.
        pictures: folder of pictures to make an archive of, or None.
        quick: measure too little for stable figures, only to see that it works.
    """

    archive: Path
    scripts: Path
    workspace: Path
    pictures: Path | None = None
    quick: bool = False

    @property
    def rounds(self) -> int:
        """How often each side is measured."""
        return 1 if self.quick else 5

    @property
    def few_rounds(self) -> int:
        """How often a side is measured that takes long, or a process of its own."""
        return min(3, self.rounds)


Measurement = Callable[[Setting], Iterable[Row]]


def measure_all(
    measurements: Mapping[str, Measurement], setting: Setting, only: Sequence[str] = ()
) -> list[Row]:
    """Take measurements one after the other, each row shown on stderr as it comes.

    Args:
        measurements: name -> function that yields rows.
        setting: what they may use.
        only: names to take alone; all if empty.

    Raises:
        InputError: if `only` has an unknown name.
    """
    unknown = [name for name in only if name not in measurements]
    if unknown:
        known = ", ".join(measurements)
        raise InputError(f"`only` must name some of {known}. Received: {unknown[0]!r}.")
    rows = []
    for name in only or measurements:
        tqdm.write(f"measuring: {name}", file=sys.stderr)
        for row in measurements[name](setting):
            rows.append(row)
            tqdm.write(f"  {row.name}: {_figure(row.ours)} {row.unit}", file=sys.stderr)
        gc.collect()  # models and their input pipelines hold each other
    return rows


def interleaved_medians(
    sides: Mapping[str, Callable[[], float | Sequence[float]]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Measure several sides in turn, A B A B, so that what else the machine does hits all alike.

    Args:
        sides: name -> function that returns a figure, or several.
        rounds: how often each is called.

    Returns:
        Name -> the median of each of its figures.
    """
    found = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            figures = measure()
            found[name].append(figures if isinstance(figures, Sequence) else (figures,))
    return {
        name: tuple(statistics.median(each) for each in zip(*figures, strict=True))
        for name, figures in found.items()
    }


def timed(function: Callable, *arguments: object) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def training_rate(setting: Setting, model, data: object, batch_size: int | None = None) -> float:
    """Slices per second of `fit`, input included, compilation and the first steps not.

    Args:
        setting: whether to measure in quick.
        model: a compiled `keras.Model`.
        data: an array of pictures, or batches with their own `batch_size`; again and again from
            the start if they are few.
        batch_size: slices in a batch of an array, None for batches.
    """
    import keras

    warmup, steps = (1, 2) if setting.quick else (2, 8)
    times = []

    def stamp(step, logs):
        stamp.steps += 1
        if stamp.steps in (warmup, warmup + steps):
            float(logs["loss"])  # a device may lag behind; the value is there once it is done
            times.append(time.perf_counter())
        model.stop_training = stamp.steps == warmup + steps

    stamp.steps = 0
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=stamp)
    epochs = warmup + steps  # more than enough: the clock stops it
    model.fit(data, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[clock])
    return (batch_size or data.batch_size) * steps / (times[1] - times[0])


class PeakMemory:
    """Context manager: this process's highest memory within the block, in GB, sampled (Linux).

    Attributes:
        before: `resident` as the block began.
        resident: highest resident memory.
        anonymous: highest part of it that the process itself allocated.
        file_backed: highest part of it that maps files, which the kernel takes back at need.
    """

    FIELDS = {"resident": "VmRSS", "anonymous": "RssAnon", "file_backed": "RssFile"}

    def __enter__(self):
        self.resident = self.anonymous = self.file_backed = 0.0
        self._look()
        self.before = self.resident
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._watcher.join()
        self._look()

    @property
    def parts(self) -> dict[str, float]:
        """The three peaks by name."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def _watch(self):
        while not self._ended.wait(SAMPLING_INTERVAL_S):
            self._look()

    def _look(self):
        status = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
        for name, key in self.FIELDS.items():
            now = int(status[key].split()[0]) * 1024 / GIGABYTE
            setattr(self, name, max(getattr(self, name), now))


def gpu_memory() -> float:
    """Highest memory of the first GPU that this process has used so far, in GB; 0 without one."""
    import keras

    from brainslices.distributed.devices import gpus

    if not gpus():
        return 0.0
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"] / GIGABYTE
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / GIGABYTE


def empty_memory() -> dict[str, float]:
    """`PeakMemory.parts` of this process with Keras and its backend and one trivial operation."""
    with cli.suppress_backend_logs():
        import keras
    with PeakMemory() as peak:
        float(keras.ops.add(keras.ops.ones(()), 1.0))
    return peak.parts


def draw_growth(path: Path, rows: Sequence[Row], unit: str) -> None:
    """Draw the curves of one unit, if there are any.

    Args:
        path: the PNG to write.
        rows: any rows.
        unit: "s" or "GB".
    """
    curves = {}
    for row in rows:
        if row.curve and row.unit == unit:
            _, sizes, figures = curves.setdefault(row.curve, (row.grows, [], []))
            sizes.append(row.size)
            figures.append(row.ours)
    if curves:
        growth_figure(path, curves, unit)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; below one what its peer is, and its note."""
    cells, remarks = [("", "ours", "peer", "unit", "ratio", "bar", "")], [""]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        figures = _figure(row.ours), _figure(row.peer), row.unit, _figure(row.ratio, "x")
        cells.append((row.name, *figures, row.bar, verdict))
        against = row.against and f"peer: {row.against}"
        remarks.append("; ".join(filter(None, (against, row.note))))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line, remark in zip(cells, remarks, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append(" ".join(padded).rstrip())
        lines += [f"    {remark}"] if remark else []
    return "\n".join(lines)


def _figure(value, suffix=""):
    if value is None:
        return ""
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + suffix
