"""Copies of an archive, runs, results and a search to corrupt, and the functions that read them."""

import hashlib
import shutil
from types import SimpleNamespace

from fake_report import write_reconstruction, write_sampling, write_scoring, write_search
from fake_trials import TRIALS, write_oracle

from brainslices.data.archive import SliceArchive
from brainslices.data.code_grids import CodeGrids
from brainslices.data.subject_table import save_subjects
from brainslices.runs.json_files import load_config, read_json, write_json
from brainslices.runs.run import Run


def write_results(root):
    """Write outputs of reconstruct.py, sample.py and score.py."""
    write_reconstruction(root / "reconstruction")
    write_sampling(root / "samples")
    write_scoring(root / "scores")
    return root


def write_finished_search(root, model, training):
    """Write a search with the files that resuming it and training its best configuration read."""
    write_search(root)
    write_oracle(root, TRIALS)
    write_json(root / "best_config.json", {"model": model, "training": training})
    return root


def add_subjects(archive):
    """Give an archive of phantoms a table of its subjects."""
    subjects = dict.fromkeys(record.subject for record in SliceArchive.open(archive).index)
    table = {name: {"age": str(40 + n), "sex": "FM"[n % 2]} for n, name in enumerate(subjects)}
    save_subjects(archive / "subjects.csv", table)
    return archive


def copy_sources(sources, root, names=None):
    """Copy folders, all or those named, so that runs refer to each other's copies."""
    names = sources.keys() if names is None else names
    ignore = shutil.ignore_patterns("logs", "figures", ".*")
    for name in names:
        shutil.copytree(sources[name], root / name, ignore=ignore)
    copies = SimpleNamespace(root=root, **{name: root / name for name in sources})
    if "vqvae" in names:
        path = Run(copies.vqvae).environment_path
        write_json(path, {**read_json(path), "archive": str(copies.archive)})
    for name in {"prior", "conditional"}.intersection(names):
        path = Run(root / name).config_path
        write_json(path, {**read_json(path), "vqvae_run": str(copies.vqvae)})
    return copies


def read_archive(copies):
    archive = SliceArchive.open(copies.archive)
    return archive.load([0, len(archive.index) - 1]), archive.subjects


def read_vqvae(copies):
    from brainslices.training.checkpoint import _read_latest
    from vqvae.config import VQVAEConfig, VQVAETraining

    run = Run(copies.vqvae)
    run.open_config("vqvae")
    load_config(run.config_path, VQVAEConfig, VQVAETraining)
    run.read_environment(), run.read_history(), run.read_metrics(), run.read_mean_image((64, 64))
    CodeGrids.load(run.code_grids_path)
    report(copies, [copies.vqvae])
    return _read_latest(run)


def read_prior(copies):
    from brainslices.training.checkpoint import _read_latest
    from pixelcnn.config import PixelCNNConfig, PixelCNNTraining
    from pixelcnn.provenance import load_provenance

    _read_latest(Run(copies.prior))
    load_config(Run(copies.prior).config_path, PixelCNNConfig, PixelCNNTraining)
    report(copies, [copies.vqvae, copies.prior])
    return load_provenance(copies.prior).positions


def read_results(copies):
    root = copies.results
    folders = {"reconstructions": [root / "reconstruction"], "samples": [root / "samples"]}
    return report(copies, [], scores=root / "scores", **folders)


def read_search_folder(copies):
    from tuning.records import check_records
    from tuning.report import read_search
    from vqvae.config import VQVAEConfig, VQVAETraining

    check_records(copies.search)
    report(copies, [], search=read_search(copies.search))
    return load_config(copies.search / "best_config.json", VQVAEConfig, VQVAETraining)


def report(copies, runs, **results):
    from brainslices.report.page import write_report

    return write_report(copies.root / "report.html", runs, **results)


READERS = {
    "archive": read_archive,
    "vqvae": read_vqvae,
    "prior": read_prior,
    "results": read_results,
    "search": read_search_folder,
}


# Folder -> the folders that its reader reads.
READ_BY = {
    "archive": ["archive"],
    "vqvae": ["archive", "vqvae"],
    "prior": ["archive", "vqvae", "prior"],
    "results": ["results"],
    "search": ["search"],
}


def commands(folder, copies, search_flags):
    """The command lines that read the files of a folder."""
    read = {**_commands_of_inputs(copies, search_flags), **_commands_of_priors(copies)}
    return read[folder]


def _commands_of_inputs(copies, search_flags):
    """The command lines that read an archive, a VQ-VAE, results or a search, by folder."""
    out, archive, vqvae, prior = copies.root / "out", copies.archive, copies.vqvae, copies.prior
    conditional, results, search = copies.conditional, copies.results, copies.search
    report = ("report", "--out", copies.root / "report.html")
    tune = ("tune", "--data", archive, "--out", search, *search_flags)
    train_vqvae = ("train_vqvae", "--data", archive)
    reconstruct = ("reconstruct", "--run", vqvae, "--data", archive, "--out")
    score = ("score", "--data", archive, "--out")
    return {
        "archive": [
            (*reconstruct, out),
            ("encode_codes", "--run", vqvae, "--data", archive),
            (*train_vqvae, "--run", vqvae, "--config", vqvae / "config.json"),
            ("prepare_data", "--source", archive, "--out", out),
            (*score, out, "--run", conditional),
            _resume(copies, conditional),
            tune,
        ],
        "vqvae": [
            (*reconstruct, out),
            ("encode_codes", "--run", vqvae),
            ("export", "--run", vqvae, "--out", out),
            (*train_vqvae, "--run", vqvae, "--config", vqvae / "config.json"),
            _resume(copies, prior),
            (*score, out, "--run", conditional),
            (*report, "--runs", vqvae, prior),
        ],
        "results": [
            (*report, "--reconstruction", results / "reconstruction"),
            (*report, "--samples", results / "samples", "--scores", results / "scores"),
            (*reconstruct, results / "reconstruction"),
            (*score, results / "scores", "--run", prior),
        ],
        "search": [
            tune,
            (*report, "--search", search),
            (*train_vqvae, "--run", out, "--epochs", 1, "--config", search / "best_config.json"),
        ],
    }


def _commands_of_priors(copies):
    """The command lines that read a prior with or without conditions, by folder."""
    out, archive = copies.root / "out", copies.archive
    vqvae, prior, conditional = copies.vqvae, copies.prior, copies.conditional
    return {
        "prior": [
            ("sample", "--run", prior, "--count", "1", "--out", out),
            ("export", "--run", prior, "--out", out),
            _resume(copies, prior),
        ],
        "conditional": [
            ("sample", "--run", conditional, "--count", 1, "--out", out, "--condition", "age=42"),
            ("export", "--run", conditional, "--out", out),
            ("score", "--data", archive, "--out", out, "--run", conditional),
            _resume(copies, conditional),
            ("report", "--out", copies.root / "report.html", "--runs", vqvae, conditional),
        ],
    }


def _resume(copies, prior):
    """The command line that resumes the training of a prior."""
    config = prior / "config.json"
    return ("train_pixelcnn", "--vqvae", copies.vqvae, "--run", prior, "--config", config)


def hashes(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
