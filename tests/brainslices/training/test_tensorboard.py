"""The TensorBoard logs of a run."""

import pytest
from helpers import csv_rows
from training_runs import fit_tiny

from brainslices.runs.run import Run


@pytest.mark.slow
def test_event_files_hold_the_scalars_of_the_history(trained_vqvae):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    run = Run(trained_vqvae)
    (epoch,) = csv_rows(run.history_path)
    for name, prefix in (("train", ""), ("validation", "val_")):
        events = accumulator.EventAccumulator(str(run.logs / name))
        events.Reload()
        tags = events.Tags()["tensors"]
        assert "epoch_loss" in tags
        for tag in tags:
            column = prefix + tag.removeprefix("epoch_")
            if column in epoch:
                (event,) = events.Tensors(tag)
                value = float(tensor_util.make_ndarray(event.tensor_proto))
                assert value == pytest.approx(float(epoch[column]), rel=1e-6)


@pytest.mark.slow
def test_logs_that_cannot_be_written_do_not_stop_a_training(tmp_path, caplog):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.logs.write_text("a file")
    _, progress = fit_tiny(run, epochs=2)
    assert progress.epoch == 2
    assert caplog.text.count(f"logs in {run.logs} cannot be written") == 1
    assert run.logs.read_text() == "a file"
