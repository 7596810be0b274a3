import numpy as np
import pytest
from fake_trials import TRIALS, write_trial
from PIL import Image

from brainslices.errors import InputError
from brainslices.runs.json_files import load_config
from tuning.config import SearchConfig
from tuning.report import SearchResult, _read_history, describe_best, pareto_front, write_report
from tuning.trial import trial_config, trial_folder
from vqvae.config import DEFAULT, VQVAEConfig, VQVAETraining

CONFIG = SearchConfig(rate_weight=2.0, trials=5)
COMPLETED = TRIALS[:-1]
RESULT = SearchResult(
    CONFIG, COMPLETED, [trial_config(CONFIG, trial.values)[0] for trial in COMPLETED]
)


@pytest.fixture
def out(tmp_path):
    for trial in TRIALS:
        write_trial(tmp_path, trial)
    return tmp_path


def test_pareto_front_holds_all_that_nothing_dominates():
    rng = np.random.default_rng(0)
    for count in (1, 2, 30):
        rates, scores = rng.integers(0, 6, (2, count)) / 5
        front = pareto_front(rates, scores)
        points = {(rates[row], scores[row]) for row in front}
        for rate, score in zip(rates, scores, strict=True):
            dominates = (rates <= rate) & (scores >= score) & ((rates < rate) | (scores > score))
            assert dominates.any() != ((rate, score) in points)
        assert (np.diff(rates[front]) > 0).all()
        assert (np.diff(scores[front]) > 0).all()


def test_best_trial_of_each_codebook_size():
    assert RESULT.best is TRIALS[1]
    assert RESULT.best_by_size() == {64: TRIALS[0], 512: TRIALS[1], 2048: TRIALS[3]}


def test_summary_names_the_best_size_and_its_neighbours():
    summary = describe_best(RESULT)
    assert summary.startswith("A codebook of 512 codes (downsampling 8) is best by val_rate_")
    assert "ssim_foreground 0.8500 at 0.0500 bits per pixel under the prior" in summary
    assert "With 64 codes: ssim_foreground 0.7000" in summary
    assert "With 2048 codes: ssim_foreground 0.8700" in summary


def test_report_has_table_configuration_and_figures(out):
    summary = write_report(out, CONFIG)
    assert summary.startswith("4 trials completed, 1 failed. A codebook of 512 codes")
    assert "--finalists 3" in summary
    lines = (out / "trials.csv").read_text().splitlines()
    assert lines[0] == (
        "trial,status,score,num_embeddings,downsampling,val_rate_distortion,val_ssim_foreground,"
        "bits_per_pixel_prior,runs,reason"
    )
    assert lines[-1].endswith(",loss is not finite")
    assert trial_folder(out, CONFIG, TRIALS[1].values).name in lines[2]
    model, training = load_config(out / "best_config.json", VQVAEConfig, VQVAETraining)
    assert (model.num_embeddings, model.downsampling) == (512, 8)
    assert training == DEFAULT.training  # of a full training
    for name in ("codebook", "rate_distortion"):
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300


def test_search_of_failures_alone_is_an_error(out):
    for trial in COMPLETED:
        (out / "trials" / f"trial_{trial.name}" / "trial.json").unlink()
    with pytest.raises(InputError, match="All 1 trials .*: loss is not finite"):
        write_report(out, CONFIG)
    assert (out / "trials.csv").exists()


def test_corrupt_learning_curve_is_left_out(tmp_path):
    path = tmp_path / "vqvae" / "history.csv"
    path.parent.mkdir()
    path.write_text("epoch,loss\n1,0.5\n2,0.25\n")
    assert _read_history(tmp_path, "vqvae", "loss") == [0.5, 0.25]
    for corrupt in (b"epoch,loss\n1,0.5\n2", b"\xff\xfe\x00", b""):
        path.write_bytes(corrupt)
        assert _read_history(tmp_path, "vqvae", "loss") == []
