"""Measurement of speed and memory: interleaved rounds, medians, memory in a process of its own."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from brainslices import cli
from brainslices.errors import InputError
from brainslices.tables import format_table
from brainslices.visualization.figures import growth_figure

__all__ = [
    "GIGABYTE",
    "Row",
    "Setting",
    "draw_growth",
    "format_rows",
    "idle_memory",
    "interleaved_medians",
    "measure_all",
    "measure_memory",
    "peak_gpu_memory",
    "time_call",
]

GIGABYTE = 10**9
PROCESS_STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")
Measured = TypeVar("Measured", float, tuple[float, ...])


@dataclass(frozen=True)
class Row:
    """One measured value.

    Args:
        name: what was measured.
        unit: "s", "GB" (10**9 bytes) or a rate, such as "slices/s".
        value: this project's value.
        baseline: the baseline's value, measured in the same run, or None.
        baseline_name: what the baseline is.
        at_most: upper threshold of `value`, in its unit, or None.
        at_least: lower threshold of `ratio`, or None.
        note: conditions of the measurement.
        curve: title of the curve that the row is a point of; "" for a row that is not drawn.
        x_label: label of the curve's x axis.
        x: position of the row on that axis.
    """

    name: str
    unit: str
    value: float
    baseline: float | None = None
    baseline_name: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    curve: str = ""
    x_label: str = ""
    x: int = 0

    @property
    def ratio(self) -> float | None:
        """How many times better `value` is than `baseline`: above 1 is faster, or smaller."""
        if self.baseline is None:
            return None
        is_rate = self.unit.endswith("/s")
        return self.value / self.baseline if is_rate else self.baseline / self.value

    @property
    def threshold(self) -> str:
        """The threshold as text, empty without one."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f">= {self.at_least:g}x"

    @property
    def is_met(self) -> bool | None:
        """Whether the threshold is met; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.ratio >= self.at_least

    def as_dict(self) -> dict:
        """Return the fields, `ratio` and `is_met`, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "is_met": self.is_met}


@dataclass(frozen=True)
class Setting:
    """Inputs of every measurement.

    Args:
        archive: folder of the slice archive.
        scripts: folder of the commands.
        workspace: empty folder for large temporary files.
        source: folder of images to make an archive from, or None.
        quick: measure too little for stable values, only to check that the benchmark runs.
    """

    archive: Path
    scripts: Path
    workspace: Path
    source: Path | None = None
    quick: bool = False

    @property
    def rounds(self) -> int:
        """Rounds of a short measurement."""
        return 1 if self.quick else 5

    @property
    def few_rounds(self) -> int:
        """Rounds of a measurement that is long, or runs in a process of its own."""
        return min(3, self.rounds)


Measurement = Callable[[Setting], Iterable[Row]]


def measure_all(
    measurements: Mapping[str, Measurement], setting: Setting, only: Sequence[str] = ()
) -> Iterator[Row]:
    """Run measurements one after the other; yield each row and report it on stderr.

    Rows with the value NaN, which could not be measured here, are left out.

    Args:
        measurements: name -> function that yields rows.
        setting: their inputs.
        only: names of the measurements to run; all if empty.

    Raises:
        InputError: if `only` has an unknown name.
    """
    unknown = [name for name in only if name not in measurements]
    if unknown:
        known = ", ".join(measurements)
        raise InputError(f"`only` must name some of {known}. Received: {unknown[0]!r}.")
    for name in only or measurements:
        tqdm.write(f"measuring: {name}", file=sys.stderr)
        for row in measurements[name](setting):
            if math.isnan(row.value):
                continue
            tqdm.write(f"  {row.name}: {_format_number(row.value)} {row.unit}", file=sys.stderr)
            yield row
        gc.collect()  # a model and its input pipeline refer to each other


def interleaved_medians(
    candidates: Mapping[str, Callable[[], Measured]], rounds: int
) -> dict[str, Measured]:
    """Measure several candidates in turn, A B A B, so that other load affects all of them.

    Args:
        candidates: name -> function that returns one number, or a tuple of numbers.
        rounds: how often each is called.

    Returns:
        Name -> median, or tuple of the medians of each number.

    Example:
        >>> interleaved_medians({"a": lambda: 1.5, "b": lambda: (2.0, 3.0)}, rounds=3)
        {'a': 1.5, 'b': (2.0, 3.0)}
    """
    measured = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            measured[name].append(measure())
    return {name: _median(values) for name, values in measured.items()}


def _median(values):
    if isinstance(values[0], tuple):
        return tuple(map(statistics.median, zip(*values, strict=True)))
    return statistics.median(values)


def time_call(function: Callable, *arguments: object) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure_memory(
    function: Callable[..., Result], *arguments: object
) -> tuple[Result, float, float]:
    """Call a function and measure the resident memory of this process.

    Reads the peak that the kernel records. `resource.getrusage` does not serve: its `ru_maxrss`
    survives fork and exec, so a new process starts with the peak of its parent.

    Args:
        function: what to measure; run it in a process of its own.
        *arguments: of the function.

    Returns:
        Its result, the peak in GB, and the GB of the peak that were not resident before the call;
        NaN on other systems than Linux.
    """
    if not PROCESS_STATUS.exists():
        return function(*arguments), math.nan, math.nan
    PEAK_RESET.write_text("5")  # resets the peak to the present value
    before = _resident_memory("VmRSS")
    result = function(*arguments)
    peak = _resident_memory("VmHWM")
    return result, peak, peak - before


def _resident_memory(key):
    """Return the present ("VmRSS") or the peak ("VmHWM") resident memory in GB."""
    status = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
    return int(status[key].split()[0]) * 1024 / GIGABYTE


def idle_memory() -> float:
    """Return the peak, in GB, of this process with Keras, its backend and one trivial operation."""

    def run_trivial_operation():
        with cli.suppress_backend_logs():
            import keras
        float(keras.ops.add(keras.ops.ones(()), 1.0))

    _, peak, _ = measure_memory(run_trivial_operation)
    return peak


def peak_gpu_memory() -> float:
    """Return the highest memory of the first GPU used by this process, in GB; 0 without one."""
    import keras

    from brainslices.distributed.devices import list_gpus

    if not list_gpus():
        return 0.0
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"] / GIGABYTE
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / GIGABYTE


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
            _, positions, values = curves.setdefault(row.curve, (row.x_label, [], []))
            positions.append(row.x)
            values.append(row.value)
    if curves:
        growth_figure(path, curves, unit)


def format_rows(rows: Sequence[Row]) -> str:
    """Format rows as an aligned table, each followed by its baseline's name and its note."""
    cells, remarks = [("", "value", "baseline", "unit", "ratio", "threshold", "")], [""]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.is_met]
        value, baseline = _format_number(row.value), _format_number(row.baseline)
        ratio = _format_number(row.ratio, "x")
        cells.append((row.name, value, baseline, row.unit, ratio, row.threshold, verdict))
        name = row.baseline_name and f"baseline: {row.baseline_name}"
        remarks.append("; ".join(filter(None, (name, row.note))))
    lines = []
    for line, remark in zip(format_table(cells).splitlines(), remarks, strict=True):
        lines += [line, f"    {remark}"] if remark else [line]
    return "\n".join(lines)


def _format_number(value, suffix=""):
    if value is None:
        return ""
    return (f"{value:.0f}" if value >= 100 else f"{value:.3g}") + suffix
