import re

import numpy as np
import pytest
from fake_report import (
    PRIOR_METRICS,
    SCORES,
    write_reconstruction,
    write_run,
    write_sampling,
    write_scoring,
)
from helpers import save_image

from brainslices.errors import InputError
from brainslices.report.collect import read_reconstruction, read_run
from brainslices.report.page import write_report
from brainslices.report.plots import learning_curves, rate_plane
from brainslices.runs.json_files import read_json, write_json
from brainslices.visualization.examples import read_examples


@pytest.fixture
def folders(tmp_path):
    return {
        "runs": [
            write_run(tmp_path / "vqvae", metrics={"epochs": 2, "epoch": 2, **SCORES}),
            write_run(tmp_path / "prior", "pixelcnn", metrics=PRIOR_METRICS),
        ],
        "reconstructions": [write_reconstruction(tmp_path / "reconstruction")],
        "samples": [write_sampling(tmp_path / "samples")],
        "scores": write_scoring(tmp_path / "scores"),
    }


def visible(path):
    """The page's HTML without scripts, style and pictures."""
    html = re.sub(r"<(script|style).*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"data:[^"]*"', '""', html)


def test_page_holds_every_part_and_refers_to_no_other_file(folders, tmp_path):
    path = write_report(tmp_path / "report.html", **folders)
    html = visible(path)
    for part in ("verdict", "runs", "curves", "reconstruction", "samples", "surprise"):
        assert f'<section id="{part}">' in html
    assert 'id="trials"' not in html
    assert "train_3, SSIM 0.750" in html
    assert not re.findall(r'(?:src|href)="(?!#|")[^"]*"', html)
    assert "default-src 'none'" in html
    assert path.stat().st_size < 6e6  # of which plotly.js has 4.8


def test_names_in_files_are_escaped(tmp_path):
    run = write_run(tmp_path / "<b>", command="<img src=x>")
    html = write_report(tmp_path / "report.html", [run]).read_text()
    assert "<img src=x>" not in html
    assert "&lt;img src=x&gt;" in html
    assert "<b>," not in html.partition("</script>")[0]


def test_path_that_is_not_utf8_is_escaped(tmp_path):
    run = write_run(tmp_path / "run", archive="/data/a\udcff")
    assert "/data/a\\udcff" in write_report(tmp_path / "report.html", [run]).read_text()


@pytest.mark.parametrize(("epochs", "status"), [(0, "no epoch of 2"), (1, "half trained: 1 of 2")])
def test_half_trained_run_gives_a_report_that_says_so(tmp_path, epochs, status):
    run = write_run(tmp_path / "run", epochs=epochs)
    html = visible(write_report(tmp_path / "report.html", [run]))
    assert f"{tmp_path.name}/run: {status}" in html
    assert ('id="curves"' in html) == (epochs > 0)
    assert "its subjects are not counted" in html


def test_resumed_training_with_older_metrics_is_half_trained(tmp_path):
    run = read_run(write_run(tmp_path, epochs=2, metrics={"epochs": 1, "epoch": 1}))
    assert run.status.startswith("half trained")


def test_subjects_are_counted_where_the_archive_is_unchanged(tmp_path, phantom_archive):
    run = write_run(tmp_path, archive=str(phantom_archive.path))
    assert read_run(run).counts is None  # another content
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("a" * 64, phantom_archive.content_hash))
    assert read_run(run).counts == phantom_archive.counts
    assert "5 subjects (40 slices) in train" in visible(write_report(tmp_path / "r.html", [run]))


def test_results_of_other_models_are_named(folders, tmp_path):
    folders["reconstructions"] = [write_reconstruction(tmp_path / "other", model_hash="f" * 64)]
    html = visible(write_report(tmp_path / "report.html", **folders))
    assert html.index("other is of another model") < html.index("<strong>Reconstruction")


def test_older_reconstruction_has_no_slices_to_show(folders, tmp_path):
    (folders["reconstructions"][0] / "examples.npz").unlink()
    html = visible(write_report(tmp_path / "report.html", **folders))
    assert "run reconstruct.py again" in html


def test_runs_are_compared_in_one_table(tmp_path):
    runs = [
        write_run(tmp_path / name, metrics={"epochs": 2, "ssim_foreground": score})
        for name, score in (("narrow", 0.81), ("wide", 0.85))
    ]
    html = visible(write_report(tmp_path / "report.html", runs))
    assert re.search(r"ssim_foreground, validation</th><td>0.81</td><td>0.85</td>", html)


def test_runs_are_compared_by_the_time_that_they_took(tmp_path):
    times = {"half": {}, "slow": {"seconds": 240.0}, "fast": {"seconds": 60.0}}
    runs = [
        read_run(write_run(tmp_path / name, metrics={"epochs": 2, **time} if time else None))
        for name, time in times.items()
    ]
    prior = read_run(write_run(tmp_path / "prior", "pixelcnn", metrics=PRIOR_METRICS))
    *by_epoch, by_minutes = learning_curves([*runs, prior])
    assert {figure["layout"]["xaxis"]["title"]["text"] for figure in by_epoch} == {"epoch"}
    slow, fast = by_minutes["data"]
    assert (slow["x"], fast["x"]) == ([2, 4], [0.5, 1])
    assert slow["y"] == fast["y"] == [0.6, 0.7]
    assert slow["line"]["color"] == by_epoch[0]["data"][1]["line"]["color"]
    titles = [figure["layout"]["title"]["text"] for figure in learning_curves(runs[:2])]
    assert by_minutes["layout"]["title"]["text"] not in titles


def test_results_of_several_runs_are_judged_and_shown_side_by_side(tmp_path):
    folders = {"reconstructions": write_reconstruction, "samples": write_sampling}
    outputs = {
        name: [write(tmp_path / name / run) for run in ("narrow", "wide")]
        for name, write in folders.items()
    }
    priors = [write_run(tmp_path / name, "pixelcnn", metrics=PRIOR_METRICS) for name in ("a", "b")]
    html = visible(write_report(tmp_path / "report.html", priors, **outputs))
    for title in ("Reconstruction of reconstructions", "Samples of samples"):
        assert re.findall(f"<strong>{title}/(\\w+): good", html) == ["narrow", "wide"]
    assert len(re.findall("<strong>Prior of .*/[ab]: good", html)) == 2
    levels = html.split('<div class="level">')[1:]
    shown = [
        re.findall(r'alt="Sample, samples/(\w+), position ([\d.]+)"', level) for level in levels
    ]
    positions = ("0.000", "0.333", "0.667", "1.000")
    assert shown == [[("narrow", position), ("wide", position)] for position in positions]


def test_samples_are_compared_at_the_nearest_position_where_both_have_some(tmp_path):
    few, many = write_sampling(tmp_path / "few"), write_sampling(tmp_path / "many")
    for path in sorted((few / "slices").iterdir())[::3]:
        path.unlink()
    html = visible(write_report(tmp_path / "report.html", samples=[few, many]))
    assert html.count('<div class="level">') == 2
    for position in ("0.333", "0.667"):
        assert html.count(f"position {position}</span>") == 2


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("samples/slices/sample_0003_position_high.png", "name"),
        ("vqvae/metrics.json", "{"),
        ("vqvae/metrics.json", '{"ssim": "high"}'),
        ("vqvae/history.csv", "epoch\n7\n"),
        ("vqvae/config.json", None),
        ("vqvae/environment.json", '{"versions": 3}'),
        ("samples/slices/sample_0003_position_1.000.png", "another size"),
        ("reconstruction/metrics.json", None),
        ("reconstruction/metrics.json", '{"ssim": 1}'),
        ("reconstruction/examples.npz", "PK"),
        ("samples/metrics.json", '{"samples": 1, "temperature": 1, "seed": "x"}'),
        ("samples/nearest.csv", "sample\n1\n"),
        ("scores/metrics.json", '{"slices": 6}'),
        ("scores/surprise.png", "PNG"),
        ("samples/slices/sample_0000_position_0.000.png", "PNG"),
        ("samples/nearest/sample_0000_position_0.000.png", None),
    ],
)
def test_damaged_or_missing_file_is_named_and_nothing_is_written(folders, tmp_path, path, content):
    (tmp_path / path).unlink(missing_ok=content == "name")
    if content == "name":
        save_image(tmp_path / path)
    elif content == "another size":
        save_image(tmp_path / path, np.zeros((5, 5), "uint8"))
    elif content is not None:
        (tmp_path / path).write_text(content)
    with pytest.raises(InputError) as error:
        write_report(tmp_path / "report.html", **folders)
    assert str(tmp_path / path.partition("/")[0]) in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_examples_of_another_shape_are_refused(folders):
    path = folders["reconstructions"][0] / "examples.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name, value in (("codes", arrays["codes"] + 16), ("label", arrays["label"][:1])):
        np.savez(path, **{**arrays, name: value})
        with pytest.raises(InputError, match="examples"):
            read_examples(path)


def test_output_must_be_html_and_something_must_be_given(tmp_path, folders):
    with pytest.raises(InputError, match="Received: out=.*report.pdf"):
        write_report(tmp_path / "report.pdf", **folders)
    with pytest.raises(InputError, match="`runs` .* Received: none"):
        write_report(tmp_path / "report.html")


def test_files_of_a_page_are_package_data():
    from importlib.resources import files

    names = {path.name for path in files("brainslices.report").joinpath("templates").iterdir()}
    assert names == {"report.html.j2", "style.css", "script.js"}


def test_folders_that_a_report_could_not_tell_apart_are_refused(tmp_path):
    runs = [write_run(tmp_path / parent / "runs" / "vqvae") for parent in "ab"]
    with pytest.raises(InputError, match="`runs` must have different names.*'runs/vqvae' for both"):
        write_report(tmp_path / "report.html", runs)


def test_archive_that_cannot_be_reached_is_one_that_was_moved(tmp_path):
    # Too long a name is an error of the file system other than "not found", as no permission is.
    run = write_run(tmp_path / "run", archive=f"/{'a' * 300}")
    assert read_run(run).counts is None


def test_rate_of_a_prior_is_drawn_for_the_slices_of_its_archive_alone(tmp_path):
    vqvae, prior = write_run(tmp_path / "vqvae"), write_run(tmp_path / "prior", "pixelcnn")
    model_hash = read_run(vqvae).model_hash
    config = read_json(prior / "config.json") | {"vqvae_hash": model_hash}
    write_json(prior / "config.json", config)
    write_json(prior / "metrics.json", PRIOR_METRICS)
    for other, count in (("a", 1), ("b", 0)):
        reconstruction = read_reconstruction(
            write_reconstruction(
                tmp_path / other,
                model_hash=model_hash,
                archive_hash=other,
                training_archive_hash="a",
            )
        )
        traces = rate_plane([reconstruction], [read_run(prior)])["data"]
        assert sum("under" in trace["name"] for trace in traces) == count
