"""What a search shows on a terminal, and how news are told where there is none."""

import io

import pytest
from helpers import ROOT
from rich.console import Console, ConsoleDimensions

from brainslices.runs.json_files import write_json
from tuning.config import METRICS, SearchConfig
from tuning.live_table import _Screen
from tuning.records import read_trials
from tuning.trial import folder_of

CONFIG = SearchConfig(
    space=str(ROOT / "tests" / "support" / "tiny_space.py"), fix=("learning_rate=0.001",), trials=5
)
REASON = "[/job:localhost/device:CPU:0] broke [bold]"


def write_trial(out, name, codes, status, score=None, message=None):
    """A trial as keras-tuner writes it; a chief's workers tell metrics in any order."""
    metrics = {"seconds": 12.0, "bits_per_pixel_prior": 0.05, "val_ssim_foreground": 0.8}
    metrics["val_rate_distortion"] = score
    space = [{"config": {"name": each}} for each in ("num_embeddings", "learning_rate")]
    values = {"learning_rate": 1e-3, "num_embeddings": codes, "tuner/epochs": 2}
    told = {
        "trial_id": name,
        "hyperparameters": {"space": space, "values": values},
        "metrics": {
            "metrics": {each: {"observations": [{"value": [metrics[each]]}]} for each in metrics}
        },
        "score": score,
        "status": status,
        "message": message,
    }
    write_json(out / "trials" / f"trial_{name}" / "trial.json", told)


@pytest.fixture
def out(tmp_path):
    write_trial(tmp_path, "0", 8, "COMPLETED", 0.31)
    write_trial(tmp_path, "1", 16, "COMPLETED", 0.28)
    write_trial(tmp_path, "2", 32, "FAILED", message=f"Traceback\nError: {REASON}\n")
    write_trial(tmp_path, "3", 32, "RUNNING")
    return tmp_path


def screen(out):
    return _Screen(out, CONFIG, lambda values: folder_of(out, CONFIG, values))


def drawn(out, height=40, width=120):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=width)
    console.print(screen(out).table(ConsoleDimensions(width, height)))
    return text.getvalue()


def test_table_tells_every_trial(out):
    title, *_, heading, _, first, _, _, last = drawn(out).strip().splitlines()
    assert title.startswith("3 of 5 trials, best val_rate_distortion 0.2800 (trial 1), 00:00")
    assert heading.split()[:2] == ["trial", "embeddings"]
    assert "rate" not in heading
    assert first.split() == ["0", "8", "0.8000", "0.0500", "12", "0.3100", "done"]
    assert last.split() == ["3", "32", "starting"]


def test_metrics_of_any_order_are_told_in_one(out):
    names = list(read_trials(out)[0].metrics)
    assert names == [name for name in METRICS if name in names]
    assert len(names) == 4


def test_brackets_of_a_reason_are_no_marks(out):
    assert "failed: [/job:localhost" in drawn(out)


def test_running_trial_tells_its_epoch(out):
    folder = folder_of(out, CONFIG, {"num_embeddings": 32}) / "vqvae"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,loss\n1,0.5\n2,0.4\n")
    assert "vqvae, epoch 2" in drawn(out)


def test_low_terminal_keeps_the_best_and_the_last(out):
    for number in range(4, 10):
        write_trial(out, str(number), 8, "COMPLETED", 0.5)
    names = [line.split()[0] for line in drawn(out, height=5).splitlines()[4:]]
    assert names == ["1", "7", "8", "9"]


def test_lines_of_a_pipe_tell_only_news(out, capsys):
    told = screen(out)
    told.print_finished_trials()
    assert capsys.readouterr().out == ""
    write_trial(out, "3", 32, "COMPLETED", 0.25)
    told.print_finished_trials()
    told.print_finished_trials()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial 3: num_embeddings=32 learning_rate=0.001: score 0.2500. 4 of 5")
    assert "left" in line
