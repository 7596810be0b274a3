"""Trainings shared by devices and by processes are those of one device."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, environment, python

from brainslices.data.batches import Batches
from brainslices.distributed.multihost import ADDRESSES, COUNT, INDEX
from brainslices.runs.json_files import read_json

TOLERANCE = 1e-5
PROGRAM = ROOT / "tests" / "support" / "train_both.py"


class Counted(Batches):
    """Batches of numbers; the draws are shown beside them."""

    def draw(self, count, chance):
        return chance.random(count)

    def load(self, chosen, draws):
        return list(chosen) if draws is None else list(zip(chosen, draws, strict=True))


def shares(index, **options):
    batches = [Counted(22, 8, devices=4, **options) for _ in range(2)]
    for share, batch in enumerate(batches):
        batch.share, batch.shares = share, 2
    return [batch[index][0] for batch in batches]


@pytest.mark.parametrize("step", [0, 1])
def test_processes_have_the_parts_of_one_batch(step):
    first, second = shares(step, seed=5)
    assert len(first) == len(second) == 4
    assert first + second == Counted(22, 8, seed=5)[step][0]


def test_last_batch_of_a_validation_is_even():
    batches = Counted(22, 8, devices=4)
    assert [len(batches[step][0]) for step in range(len(batches))] == [8, 8, 4]
    assert shares(2) == [[16, 17], [18, 19]]


def start(*words, **changes):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, *words], env=environment(**changes), **options)


def begin(archive, out, devices=1, **changes):
    """Start the training of both stages in a process of its own."""
    return start(PROGRAM, archive.path, out, str(devices), **changes)


def finish(*processes):
    printed = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return printed


def history(run):
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def assert_same_training(one, other):
    """Losses, scores, weights and the codebook's averages are equal to a few float32 steps."""
    for stage in ("vqvae", "pixelcnn"):
        first, second = history(one / stage), history(other / stage)
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_allclose(first[name], second[name], rtol=TOLERANCE, err_msg=name)
        with np.load(one / stage / "state.npz") as a, np.load(other / stage / "state.npz") as b:
            assert a.files == b.files
            for key in [key for key in a.files if key.startswith("model")]:
                scale = np.abs(a[key]).max() + 1e-3
                assert np.abs(a[key] - b[key]).max() / scale < 10 * TOLERANCE, key


@pytest.mark.slow
def test_two_devices_of_tensorflow_train_as_one(phantom_archive, tmp_path):
    one = begin(phantom_archive, tmp_path / "one", KERAS_BACKEND="tensorflow")
    two = begin(phantom_archive, tmp_path / "two", devices=2, KERAS_BACKEND="tensorflow")
    _, printed = finish(one, two)
    assert "2 devices, 4 items each a step" in printed
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert read_json(tmp_path / "two" / "vqvae" / "environment.json")["devices"] == [
        "cpu:0",
        "cpu:1",
    ]


@pytest.fixture(scope="module")
def jax_alone(phantom_archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("jax") / "single_device"
    finish(begin(phantom_archive, out, KERAS_BACKEND="jax"))
    return out


@pytest.mark.long
@pytest.mark.slow
def test_two_devices_of_jax_train_as_one(jax_alone, phantom_archive, tmp_path):
    virtual = "--xla_force_host_platform_device_count=2"
    finish(begin(phantom_archive, tmp_path, KERAS_BACKEND="jax", XLA_FLAGS=virtual))
    assert_same_training(jax_alone, tmp_path)


def start_two(*words):
    """Two processes that work together, over the loopback."""
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    cluster = {ADDRESSES: f"127.0.0.1:{port}", COUNT: "2", "KERAS_BACKEND": "jax"}
    return [start(*words, **cluster, **{INDEX: index}) for index in "01"]


def begin_two(archive, out):
    """Two processes that train both stages together."""
    return start_two(PROGRAM, archive.path, out, "1")


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_where_they_were_stopped(
    jax_alone, phantom_archive, tmp_path
):
    """The second process is asked to stop: both do, at the same step, and the first saves."""
    state = tmp_path / "vqvae" / "state.npz"
    processes = begin_two(phantom_archive, tmp_path)
    while processes[1].poll() is None and not (tmp_path / "vqvae" / "history.csv").exists():
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGINT] * 2, printed
    assert all("KeyboardInterrupt: Checkpoint saved in" in text for text in printed)
    with np.load(state) as file:
        assert 1 <= json.loads(file["progress"].item())["epoch"] < 3

    first, second = finish(*begin_two(phantom_archive, tmp_path))
    assert "epoch 3/3" in first
    assert "epoch" not in second, "only the first process speaks"
    assert_same_training(jax_alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.long)])
def test_process_that_dies_ends_the_other_with_a_message(phantom_archive, tmp_path, lost):
    processes = begin_two(phantom_archive, tmp_path)
    while processes[1].poll() is None and not (tmp_path / "vqvae" / "history.csv").exists():
        time.sleep(0.02)
    processes[lost].kill()
    printed = processes[1 - lost].communicate(timeout=100)[0]
    assert processes[1 - lost].returncode == 2, printed
    assert "error: Another of the processes that train together has ended" in printed
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    processes[lost].communicate()


TOGETHER = """
import errno, sys
from brainslices import cli
from brainslices.distributed.multihost import joined
from brainslices.distributed.devices import anywhere, is_primary, on_each, run_on_primary
from brainslices.errors import InputError

def open_data():
    if not is_primary():
        raise InputError("no data here")

def look_up():
    raise KeyError("unforeseen")

def be_stopped():
    raise KeyboardInterrupt

def main():
    with joined():
        if sys.argv[1] == "each":
            on_each(open_data)
        elif sys.argv[1] == "first":
            run_on_primary(look_up)
        elif sys.argv[1] == "stop":
            run_on_primary(be_stopped)
        elif is_primary():
            raise OSError(errno.ENOSPC, "No space left on device", "/runs/one")
        anywhere(False)

sys.exit(cli.run(main))
"""
LOST = "error: Another of the processes that train together has ended"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("each", 2, ["Another of the processes cannot begin", "error: no data here"]),
        pytest.param("first", 1, ["KeyError", "KeyError in the first"], marks=pytest.mark.long),
        pytest.param("stop", 130, ["stopped.", "stopped."], marks=pytest.mark.long),
        ("single_device", 2, ["error: The disk is full (/runs/one)", LOST]),
    ],
)
def test_error_of_one_process_ends_both(kind, status, words):
    processes = start_two("-c", TOGETHER, kind)
    began = time.monotonic()
    printed = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * 2, printed
    for text, told in zip(printed, words, strict=True):
        assert told in text
    assert time.monotonic() - began < 60


OVERFLOW = """
import sys
sys.path.insert(0, "tests/support")
from train_both import use_virtual_devices
use_virtual_devices(2)
import keras, numpy as np
from helpers import tiny_training
from brainslices.distributed.devices import data_parallel
from brainslices.training.optimizer import compile_model
keras.config.set_dtype_policy("mixed_float16")

class Net(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.cast(y_pred, "float32"))

for part in range(2):
    with data_parallel():
        net = Net([keras.Input((3,)), keras.layers.Dense(2)])
        compile_model(net, tiny_training(gradient_clip=1.0, schedule="constant", warmup_steps=0), 1)
        before, scale = net.get_weights(), np.asarray(net.optimizer.dynamic_scale)
        inputs = np.ones((4, 3), "float32")
        net.fit(inputs, batch_size=4, verbose=0)
        moved = net.get_weights()
        assert not np.array_equal(before[0], moved[0])
        inputs[2 * part] = 1e30
        net.fit(inputs, batch_size=4, verbose=0)
    for one, other in zip(moved, net.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert np.asarray(net.optimizer.dynamic_scale) == scale / 2
print("left out")
"""


@pytest.mark.slow
def test_overflow_on_any_device_leaves_out_the_step():
    """float16: Keras itself asks the first replica alone, and then adds the others' infinities."""
    ran = python("-c", OVERFLOW, timeout=300, KERAS_BACKEND="tensorflow")
    assert ran.stdout == "left out\n", ran.stderr


REPLICAS = """
import sys
sys.path.insert(0, "tests/support")
from train_both import use_virtual_devices
use_virtual_devices(2)
import numpy as np
from helpers import pictures, tiny_model, tiny_training
from brainslices.distributed.devices import data_parallel
from brainslices.training.optimizer import compile_model

with data_parallel():
    model = tiny_model()
    compile_model(model, tiny_training(warmup_steps=0, schedule="constant"), 4)
    before = np.asarray(model.quantizer.codebook)
    model.fit(pictures(32), batch_size=8, epochs=2, verbose=0)
assert not np.array_equal(before, np.asarray(model.quantizer.codebook))
for variable in model.weights:
    parts = [part.numpy() for part in variable.value.values]
    assert len(parts) == 2, variable.path
    np.testing.assert_array_equal(*parts, err_msg=variable.path)
print(len(model.weights) > 10)
"""


@pytest.mark.slow
def test_replicas_have_one_codebook():
    """Codes, counts and sums of the moving averages, and all weights, equal to the bit."""
    ran = python("-c", REPLICAS, timeout=300, KERAS_BACKEND="tensorflow")
    assert ran.stdout == "True\n", ran.stderr


@pytest.mark.long
@pytest.mark.slow
def test_run_goes_on_under_the_other_backend(phantom_archive, tmp_path):
    """Begun under TensorFlow and stopped, ended under JAX: as the former alone."""
    single_device, moved = tmp_path / "single_device", tmp_path / "moved"
    finish(begin(phantom_archive, single_device, KERAS_BACKEND="tensorflow"))
    first = begin(phantom_archive, moved, KERAS_BACKEND="tensorflow")
    while first.poll() is None and not (moved / "pixelcnn" / "history.csv").exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=100)
    with np.load(moved / "pixelcnn" / "state.npz") as file:
        assert 1 <= json.loads(file["progress"].item())["epoch"] < 3
    finish(begin(phantom_archive, moved, KERAS_BACKEND="jax"))
    one, other = history(single_device / "pixelcnn"), history(moved / "pixelcnn")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=TOLERANCE, err_msg=name)
