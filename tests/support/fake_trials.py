"""Search folders as keras-tuner writes them, without any search."""

from brainslices.runs.json_files import write_json
from tuning.records import TrialRecord

# Codebook size, ssim_foreground and bits per pixel; the last trial failed.
SCORES = [(64, 0.70, 0.03), (512, 0.85, 0.05), (512, 0.84, 0.06), (2048, 0.87, 0.09), (16, None, 0)]


def make_record(number, size, ssim, rate):
    values = {"num_embeddings": size, "downsampling": 8 if number % 2 else 4}
    if ssim is None:
        return TrialRecord(f"{number}", "failed", values, {}, None, "loss is not finite")
    score = 1 - ssim + 2 * rate
    metrics = {"val_rate_distortion": score, "val_ssim_foreground": ssim}
    metrics["bits_per_pixel_prior"] = rate
    return TrialRecord(f"{number}", "completed", values, metrics, score, "")


def write_oracle(out, trials, **changes):
    """Write the state of keras-tuner after some trials."""
    import keras_tuner

    state = keras_tuner.oracles.RandomSearchOracle(seed=0).get_state()
    names = [trial.name for trial in trials]
    state |= {"start_order": names, "end_order": names, **changes}
    write_json(out / "trials" / "oracle.json", state)


TRIALS = [make_record(number, *scores) for number, scores in enumerate(SCORES)]


def write_trial(out, trial, **changes):
    """Write a trial; metrics in another order than ours, as a chief's workers report them."""
    metrics = {
        name: {"direction": "min", "observations": [{"value": [value], "step": 0}]}
        for name, value in reversed(trial.metrics.items())
    }
    state = {
        "trial_id": trial.name,
        "hyperparameters": {
            "space": [
                {"class_name": "Fixed", "config": {"name": name, "value": value, "conditions": []}}
                for name, value in trial.values.items()
            ],
            "values": {"tuner/epochs": 3, **dict(reversed(trial.run_values.items()))},
        },
        "metrics": {"metrics": metrics},
        "score": trial.score,
        "best_step": 0,
        "status": trial.status.upper(),
        "message": None,
    }
    folder = out / "trials" / f"trial_{trial.name}"
    write_json(folder / "trial.json", {**state, **changes})
    if trial.reason:
        write_json(folder / "failure.json", {"reason": trial.reason})
