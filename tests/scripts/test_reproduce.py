import subprocess

from helpers import ROOT


def reproduce(*arguments):
    command = ["bash", ROOT / "scripts" / "reproduce_oasis.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_results_of_other_data_are_refused(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "source.txt").write_text(f"{other}\n")
    process = reproduce("--quick", data, out)
    assert process.returncode == 2
    assert f"error: {out} was made of {other}." in process.stderr
    assert [path.name for path in out.iterdir()] == ["source.txt"]


def test_usage_is_printed_without_both_folders(tmp_path):
    process = reproduce("--quick", tmp_path)
    assert process.returncode == 2
    assert "usage:" in process.stderr
