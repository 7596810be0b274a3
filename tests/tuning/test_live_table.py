"""The table on a terminal, and the lines of a pipe."""

import dataclasses
import io

import pytest
from fake_trials import write_trial
from helpers import ROOT
from rich.console import Console, ConsoleDimensions

from tuning.config import SearchConfig
from tuning.live_table import SearchScreen
from tuning.records import TrialRecord, read_trials
from tuning.trial import trial_folder

SPACE = str(ROOT / "tests" / "support" / "tiny_space.py")
CONFIG = SearchConfig(space=SPACE, fix=("learning_rate=0.001",), trials=5)
REASON = "[/job:localhost/device:CPU:0] broke [bold]"


def record(name, codes, score=None, status="completed", reason=""):
    metrics = {"val_ssim_foreground": 0.8, "bits_per_pixel_prior": 0.05, "seconds": 12.0}
    values = {"num_embeddings": codes, "learning_rate": 1e-3}
    metrics = {} if score is None else {"val_rate_distortion": score, **metrics}
    return TrialRecord(name, status, values, metrics, score, reason)


RUNNING = record("3", 32, status="running")


@pytest.fixture
def out(tmp_path):
    write_trial(tmp_path, record("0", 8, 0.31))
    write_trial(tmp_path, record("1", 16, 0.28))
    write_trial(tmp_path, record("2", 32, status="failed", reason=REASON))
    write_trial(tmp_path, RUNNING)
    return tmp_path


def render(out, height=40, width=120):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=width)
    console.print(SearchScreen(out, CONFIG).table(ConsoleDimensions(width, height)))
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_table_has_a_row_for_each_trial(out, width):
    title, *_, heading, _, first, _, _, last = render(out, width=width).strip().splitlines()
    assert title.startswith("3 of 5 trials, best val_rate_distortion 0.2800 (trial 1), 00:00")
    assert heading.split()[:2] == ["trial", "embeddings"]
    assert "rate" not in heading  # it is fixed
    assert first.split() == ["0", "8", "0.8000", "0.0500", "12", "0.3100", "done"]
    assert last.split() == ["3", "32", "starting"]


def test_brackets_of_a_reason_are_no_markup(out):
    assert "failed: [/job:localhost" in render(out)


def test_running_trial_shows_its_epoch(out):
    folder = trial_folder(out, CONFIG, RUNNING.values) / "vqvae"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,loss\n1,0.5\n2,0.4\n")
    assert "vqvae, epoch 2" in render(out)


def test_low_terminal_shows_the_last_trials(out):
    for number in range(4, 10):
        write_trial(out, record(str(number), 8, 0.5))
    names = [line.split()[0] for line in render(out, height=5).splitlines()[-3:]]
    assert names == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("objective", "epochs"), [("val_rate_distortion", 3 + 4), ("val_ssim_foreground", 3)]
)
def test_time_left_counts_the_epochs_of_the_stages_that_are_trained(out, objective, epochs):
    config = dataclasses.replace(CONFIG, objective=objective, epochs=3, prior_epochs=4)
    assert SearchScreen(out, config)._count_epochs(2, 0) == 2 * epochs


def test_final_trainings_of_an_earlier_selection_are_counted(out):
    config = dataclasses.replace(CONFIG, trials=3, finalists=1, final_seeds=2)
    finals = [dataclasses.replace(record("4", 8, 0.2), final_seed=0)]
    trials = read_trials(out)
    screen = SearchScreen(out, config)
    assert screen._count_finals(trials) == 2
    # Trial 1 has become the best since that of trial 0 was trained.
    assert screen._count_finals([*trials, *finals]) == 1 + 2
    # Of more finalists than configurations, those that there are.
    config = dataclasses.replace(config, finalists=9)
    assert SearchScreen(out, config)._count_finals(trials) == 2 * 2
    # Before all trials have ended, the selection is not known.
    config = dataclasses.replace(config, trials=9)
    assert SearchScreen(out, config)._count_finals(trials) == 9 * 2


def test_pipe_gets_a_line_for_each_start_and_each_end(out, capsys):
    screen = SearchScreen(out, CONFIG)
    screen.print_changes()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "trial 3: num_embeddings=32 learning_rate=0.001: started"
    write_trial(out, dataclasses.replace(record("3", 32, 0.25)))
    screen.print_changes()
    screen.print_changes()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial 3: num_embeddings=32 learning_rate=0.001: score 0.2500. 4 of 5")
    assert "left" in line
